"""Preference pairs: a prompt with a chosen and a rejected answer, from JSON Lines or from STLLaVA-Med's JSON.

A pair becomes a sample whose last turn is the chosen answer, so that its images, sizes and checks are those of every
other sample; the rejected answer is ``meta["rejected"]``. Methods other than DPO read such data as demonstrations.
"""

import difflib
from collections.abc import Mapping
from typing import Any

from medtune.data.sample import Sample
from medtune.data.source import JsonlSource, SampleSource, decode_json, place
from medtune.datasets._llava_json import LlavaJsonSource, as_turn
from medtune.errors import DataError

REJECTED = "rejected"
_OPTIONAL = ("margin", "scores", "source")
_FIELDS = ("id", "images", "messages", "chosen", REJECTED, *_OPTIONAL, "meta")


class PreferenceSource(JsonlSource):
    """Pairs of a JSON Lines file; see :func:`preference_dataset`."""

    def parse(self, raw: bytes, number: int, where: str) -> Sample:
        """Convert a line to a sample."""
        row = decode_json(raw, where)
        if not isinstance(row, Mapping):
            raise DataError(f"{where}: a row must be a JSON object, this one is a {type(row).__name__}.")
        _check_fields(row, where)
        messages = row["messages"]
        last = messages[-1] if isinstance(messages, list) and messages else None
        if not isinstance(last, Mapping) or last.get("role") != "user":
            raise DataError(
                f"{where}: 'messages' is the prompt of the pair and must end in the user's turn; the answers are in "
                f"'chosen' and '{REJECTED}'."
            )
        plain = {key: row[key] for key in ("id", "images") if key in row}
        extra = {key: row[key] for key in _OPTIONAL if key in row}
        return _pair(plain, messages, row["chosen"], row[REJECTED], row.get("meta", {}), extra, where)


class PreferenceJsonSource(LlavaJsonSource):
    """Pairs of a JSON array in STLLaVA-Med's layout; see :func:`preference_json_dataset`."""

    def parse(self, raw: bytes, number: int, where: str) -> Sample:
        """Convert an item to a sample."""
        item = decode_json(raw, where)
        names = ("chosen_conversations", "reject_conversations")
        if not isinstance(item, Mapping) or not all(isinstance(item.get(name), list) for name in names):
            raise DataError(f"{where}: an item needs the lists {names[0]} and {names[1]} of {{'from', 'value'}}.")
        chosen, rejected = ([as_turn(turn, where) for turn in item[name]] for name in names)
        for name, turns in zip(names, (chosen, rejected), strict=True):
            if len(turns) < 2 or turns[-1]["role"] != "assistant" or turns[-2]["role"] != "user":
                raise DataError(f"{where}: {name} must end in a question and its answer.")
        if chosen[:-1] != rejected[:-1]:
            raise DataError(f"{where}: the two conversations differ before their last answer; a pair has one prompt.")
        image = item.get("image", [])
        plain = {
            "id": item.get("id", self._item_id(number)),
            "images": [image] if isinstance(image, str) else image,
        }
        answers = (chosen[-1]["content"], rejected[-1]["content"])
        return _pair(plain, chosen[:-1], *answers, item.get("meta", {}), {}, where)


def rejected_answer(source: SampleSource, sample: Sample) -> str:
    """The rejected answer of a sample of a pair.

    Raises:
        DataError: if the sample is not of a pair.
    """
    answer = sample.meta.get(REJECTED)
    if not isinstance(answer, str) or not answer.strip():
        raise DataError(
            f"{place(source, sample)}: the sample has no rejected answer; take preference pairs "
            "(medtune.datasets.preference_dataset)."
        )
    return answer


def preference_dataset(source: str, image_root: str | None = None) -> PreferenceSource:
    """Pairs from JSON Lines: ``{"id", "images": [...], "messages": [...], "chosen": "...", "rejected": "..."}``.

    ``messages`` is the prompt and ends in the user's turn. ``margin``, ``scores``, ``source`` and ``meta`` are further,
    optional fields.

    Args:
        source: the ``.jsonl`` file.
        image_root: folder or ``.tar`` that the image paths are relative to; absent if no row has images.

    Raises:
        DataError: if the file is absent or empty, or the image root is absent.
    """
    return PreferenceSource(source, image_root)


def preference_json_dataset(source: str, image_root: str | None = None) -> PreferenceJsonSource:
    """Pairs from a JSON array ``[{"image", "chosen_conversations": [...], "reject_conversations": [...]}]``.

    This is the layout of STLLaVA-Med's published preference data. Both conversations must have the same prompt.

    Args:
        source: the ``.json`` file; read an item at a time.
        image_root: folder or ``.tar`` that the image paths are relative to; absent if no item has images.

    Raises:
        DataError: if the file is absent or no JSON array, or the image root is absent.
    """
    return PreferenceJsonSource(source, image_root)


def _check_fields(row: Mapping[str, Any], where: str) -> None:
    for name in row:
        if name not in _FIELDS:
            near = difflib.get_close_matches(str(name), _FIELDS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else " Put extra values under 'meta'."
            raise DataError(f"{where}: unknown field {name!r}; a pair has {', '.join(_FIELDS)}.{hint}")
    for name in ("id", "messages", "chosen", REJECTED):
        if name not in row:
            raise DataError(f"{where}: the field {name!r} is missing; a pair has {', '.join(_FIELDS)}.")


def _pair(
    plain: dict[str, Any],
    prompt: list[Any],
    chosen: object,
    rejected: object,
    meta: object,
    extra: dict[str, Any],
    where: str,
) -> Sample:
    for name, answer in (("chosen", chosen), (REJECTED, rejected)):
        if not isinstance(answer, str) or not answer.strip():
            raise DataError(f"{where}: the {name} answer is empty or no text; write it, or remove the pair.")
    if isinstance(meta, Mapping):
        twice = sorted(set(meta) & {REJECTED, *_OPTIONAL})
        if twice:
            raise DataError(f"{where}: 'meta' must not hold {twice[0]!r}, which is a field of the pair.")
        meta = {**meta, **extra, REJECTED: rejected}
    turns = [*prompt, {"role": "assistant", "content": chosen}]
    return Sample.from_dict({**plain, "messages": turns, "meta": meta}, where)
