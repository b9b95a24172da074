"""Conversations in LLaVA's layout."""

from collections.abc import Iterator, Mapping
from typing import Any

from medtune.data.sample import Sample
from medtune.data.source import RecordSource, decode_json, json_objects
from medtune.errors import DataError

_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


class LlavaJsonSource(RecordSource):
    """Conversations of one JSON array, an item at a time; see :func:`llava_json_dataset`."""

    unit = "item"

    def spans(self) -> Iterator[tuple[int, int, int, object]]:
        """Yield the place of each item; see :class:`RecordSource`."""
        with self.path.open("rb") as file:
            for number, (start, end) in enumerate(json_objects(self.path), start=1):
                file.seek(start)
                try:
                    row = decode_json(file.read(end - start), "")
                except DataError:
                    row = {}
                yield start, end, number, row.get("id", self._item_id(number)) if isinstance(row, dict) else None

    def parse(self, raw: bytes, number: int, where: str) -> Sample:
        """Convert an item to a sample."""
        item = decode_json(raw, where)
        if not isinstance(item, Mapping) or not isinstance(item.get("conversations"), list):
            raise DataError(f"{where}: an item needs a list 'conversations' of {{'from', 'value'}}.")
        image = item.get("image", [])
        row = {
            "id": item.get("id", self._item_id(number)),
            "images": [image] if isinstance(image, str) else image,
            "messages": [as_turn(turn, where) for turn in item["conversations"]],
        }
        return Sample.from_dict(row, where)

    def _item_id(self, number: int) -> str:
        return f"{self.path.stem}:{number}"


def as_turn(turn: Any, where: str) -> dict[str, Any]:
    """A turn ``{"from", "value"}`` as ``{"role", "content"}``.

    Raises:
        DataError: if it is none.
    """
    if not isinstance(turn, Mapping) or turn.get("from") not in _ROLES or "value" not in turn:
        raise DataError(f"{where}: a turn needs 'value' and a 'from' of {', '.join(_ROLES)}.")
    return {"role": _ROLES[turn["from"]], "content": turn["value"]}


def llava_json_dataset(source: str, image_root: str | None = None) -> LlavaJsonSource:
    """Conversations from a JSON array ``[{"id", "image", "conversations": [{"from": "human", "value": ...}]}]``.

    ``image`` is a path or a list of paths; ``<image>`` in a human turn marks its place. Other keys are ignored.

    Args:
        source: the ``.json`` file; read an item at a time.
        image_root: folder or ``.tar`` that the image paths are relative to; absent if no item has images.

    Raises:
        DataError: if the file is absent or no JSON array, or the image root is absent.
    """
    return LlavaJsonSource(source, image_root)
