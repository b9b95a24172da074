"""Preference pairs: a prompt with a chosen and a rejected answer, from JSON Lines or from STLLaVA-Med's JSON.

A pair becomes a sample whose last turn is the chosen answer, so that its images, sizes and checks are those of every
other sample; the rejected answer is ``meta["rejected"]``. Methods other than DPO read such data as demonstrations.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from medtune.data.crops import changed_images
from medtune.data.held_out import Part, part_by_image
from medtune.data.images import image_root_of
from medtune.data.json_text import decode_json
from medtune.data.rows import sample_of
from medtune.data.sample import Sample
from medtune.data.source import JsonlSource, RepeatedIds, SampleSource, place
from medtune.datasets._mixture import joined
from medtune.errors import DataError

REJECTED = "rejected"
_OPTIONAL = ("margin", "scores", "source")
_FIELDS = ("id", "images", "messages", "chosen", REJECTED, *_OPTIONAL, "meta", "weight")
_SIDES = ("chosen_conversations", "reject_conversations")


class PreferenceSource(JsonlSource):
    """Pairs of a JSON Lines file; see :func:`preference_dataset`."""

    def parse(self, raw: bytes, number: int, where: str) -> Sample:
        """Convert a row to a sample."""
        row = decode_json(raw, where)
        if not isinstance(row, Mapping):
            raise DataError(f"{where}: a row must be a JSON object, this one is a {type(row).__name__}.")
        row = {key: value for key, value in row.items() if key not in self.ignore_keys}
        _check_fields(row, where)
        messages = row["messages"]
        last = messages[-1] if isinstance(messages, list) and messages else None
        if not isinstance(last, Mapping) or last.get("role") != "user":
            raise DataError(
                f"{where}: 'messages' is the prompt of the pair and must end in the user's turn; the answers are in "
                f"'chosen' and '{REJECTED}'."
            )
        for name in ("chosen", REJECTED):
            _check_answer(name, row[name], where)
        turns = [*messages, {"role": "assistant", "content": row["chosen"]}]
        plain = {key: row[key] for key in row if key not in ("chosen", REJECTED, *_OPTIONAL)}
        sample = sample_of({**plain, "messages": turns}, where, self._default_id(number), self.ignore_keys)
        return _with_rejected(sample, row[REJECTED], {key: row[key] for key in _OPTIONAL if key in row}, where)


class PreferenceJsonSource(JsonlSource):
    """Pairs of a JSON array in STLLaVA-Med's layout; see :func:`preference_json_dataset`."""

    _usual: RepeatedIds = "number"

    def parse(self, raw: bytes, number: int, where: str) -> Sample:
        """Convert an item to a sample."""
        item = decode_json(raw, where)
        if not isinstance(item, Mapping) or not all(isinstance(item.get(name), list) for name in _SIDES):
            raise DataError(f"{where}: an item needs the lists {_SIDES[0]} and {_SIDES[1]} of {{'from', 'value'}}.")
        plain = {key: value for key, value in item.items() if key not in _SIDES}
        sides = []
        for name, kind in zip(_SIDES, ("chosen", REJECTED), strict=True):
            last = item[name][-1] if item[name] else None
            if isinstance(last, Mapping) and last.get("from") == "gpt":
                _check_answer(kind, last.get("value"), where)
            row = {**plain, "conversations": item[name]}
            sides.append(sample_of(row, where, self._default_id(number), self.ignore_keys))
            if [turn.role for turn in sides[-1].messages[-2:]] != ["user", "assistant"]:
                raise DataError(f"{where}: {name} must end in a question and its answer.")
        chosen, rejected = sides
        if chosen.messages[:-1] != rejected.messages[:-1]:
            raise DataError(f"{where}: the two conversations differ before their last answer; a pair has one prompt.")
        return _with_rejected(chosen, rejected.messages[-1].content, {}, where)


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


def preference_dataset(
    source: str | Sequence[str],
    image_root: str | None = None,
    repeated_ids: RepeatedIds = "refuse",
    ignore_keys: Sequence[str] = (),
    grey_bits: int | None = None,
    center_crop: float = 1.0,
    pad_to_square: int | None = None,
    part: Part | None = None,
    validation_share: float = 0.1,
) -> SampleSource:
    """Pairs from JSON Lines: ``{"id", "images": [...], "messages": [...], "chosen": "...", "rejected": "..."}``.

    ``messages`` is the prompt and ends in the user's turn. ``margin``, ``scores``, ``source``, ``meta`` and ``weight``
    are further, optional fields.

    Args:
        source: the ``.jsonl`` file, or a list of files.
        image_root: folder or ``.tar`` that the image paths are relative to; absent if no row has images.
        repeated_ids: as for :func:`medtune.datasets.jsonl_dataset`.
        ignore_keys: names of keys that are not read.
        grey_bits: as for :func:`medtune.datasets.jsonl_dataset`.
        center_crop: share of each image's sides that is kept around the centre, as in the policy's other stages.
        pad_to_square: side in pixels of a black square that each image is fitted into, as in the policy's other stages.
        part: ``training`` or ``validation`` takes a part of the file, so that both can come from one file; pairs that
            share an image are in the same part (:class:`medtune.data.held_out.PartByImage`).
        validation_share: share of the images that are for validation.

    Raises:
        ConfigError: for a ``center_crop``, ``pad_to_square``, ``grey_bits``, ``part`` or ``validation_share`` that
            cannot be used.
        DataError: if a file is absent or empty, or the image root is absent.
    """
    images = image_root_of(image_root, grey_bits)
    samples = joined(source, lambda path: PreferenceSource(path, images, repeated_ids, ignore_keys))
    return changed_images(part_by_image(samples, part, validation_share), center_crop, pad_to_square)


def preference_json_dataset(
    source: str | Sequence[str],
    image_root: str | None = None,
    repeated_ids: RepeatedIds = "number",
    ignore_keys: Sequence[str] = (),
    grey_bits: int | None = None,
    center_crop: float = 1.0,
    pad_to_square: int | None = None,
    part: Part | None = None,
    validation_share: float = 0.1,
) -> SampleSource:
    """Pairs from a JSON array ``[{"image", "chosen_conversations": [...], "reject_conversations": [...]}]``.

    This is the layout of STLLaVA-Med's published preference data. Both conversations must have the same prompt.

    Args:
        source: the ``.json`` file, read an item at a time, or a list of files.
        image_root: folder or ``.tar`` that the image paths are relative to; absent if no item has images.
        repeated_ids: as for :func:`medtune.datasets.llava_json_dataset`.
        ignore_keys: names of keys that are not read.
        grey_bits: as for :func:`medtune.datasets.jsonl_dataset`.
        center_crop: share of each image's sides that is kept around the centre, as in the policy's other stages.
        pad_to_square: side in pixels of a black square that each image is fitted into, as in the policy's other stages.
        part: ``training`` or ``validation`` takes a part of the file, so that both can come from one file; pairs that
            share an image are in the same part (:class:`medtune.data.held_out.PartByImage`).
        validation_share: share of the images that are for validation.

    Raises:
        ConfigError: for a ``center_crop``, ``pad_to_square``, ``grey_bits``, ``part`` or ``validation_share`` that
            cannot be used.
        DataError: if a file is absent or neither a JSON array nor JSON Lines, or the image root is absent.
    """
    images = image_root_of(image_root, grey_bits)
    samples = joined(source, lambda path: PreferenceJsonSource(path, images, repeated_ids, ignore_keys))
    return changed_images(part_by_image(samples, part, validation_share), center_crop, pad_to_square)


def _check_fields(row: Mapping[str, Any], where: str) -> None:
    for name in row:
        if name not in _FIELDS:
            near = difflib.get_close_matches(str(name), _FIELDS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else " Put extra values under 'meta'."
            raise DataError(f"{where}: unknown field {name!r}; a pair has {', '.join(_FIELDS)}.{hint}")
    for name in ("id", "messages", "chosen", REJECTED):
        if name not in row:
            raise DataError(f"{where}: the field {name!r} is missing; a pair has {', '.join(_FIELDS)}.")


def _check_answer(name: str, answer: object, where: str) -> None:
    if not isinstance(answer, str) or not answer.strip():
        raise DataError(f"{where}: the {name} answer is empty or no text; write it, or remove the pair.")


def _with_rejected(sample: Sample, rejected: str, extra: dict[str, Any], where: str) -> Sample:
    twice = sorted(set(sample.meta) & {REJECTED, *_OPTIONAL})
    if twice:
        raise DataError(f"{where}: 'meta' must not hold {twice[0]!r}, which is a field of the pair.")
    return replace(sample, meta={**sample.meta, **extra, REJECTED: rejected})
