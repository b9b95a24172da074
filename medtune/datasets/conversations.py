"""Questions about one image, joined to one conversation.

A model learns to ask only from conversations with more than one question (STLLaVA-Med, stage 1), but prepared data have
one question in each row.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from medtune.data.passing import PassingSource
from medtune.data.randomness import sample_rng
from medtune.data.reports import attribute_report
from medtune.data.sample import Message, Sample
from medtune.data.source import RepeatedIds, SampleSource
from medtune.datasets._jsonl import jsonl_dataset
from medtune.errors import ConfigError, DataError

VALUE_ONLY = ("label",)
"""Attributes whose value alone is the phrase of a report."""


class Conversations(PassingSource):
    """Conversations of the rows that show the same images; see :func:`conversation_dataset`.

    Args:
        source: rows of a question and its answer.
        turns: most questions in a conversation.
        phrases: whether answers are written as phrases of a report.
        shuffle: seed of the order of the questions about an image; None keeps the order of the rows.
    """

    def __init__(self, source: SampleSource, turns: int | None, phrases: bool, shuffle: int | None = None) -> None:
        super().__init__(source)
        self.turns, self.phrases, self.shuffle = turns, phrases, shuffle
        self._rows = self._parts()

    def _parts(self) -> list[list[int]]:
        """Return the rows of each conversation; one that cannot be read is alone, so that the check names it."""
        groups: dict[tuple[str, ...], list[int]] = {}
        for index in range(len(self.source)):
            try:
                images = self.source[index].images
            except DataError:
                images = ()
            groups.setdefault(images or (f"\n{index}",), []).append(index)
        if self.shuffle is not None:
            for images, rows in groups.items():
                sample_rng(self.shuffle, 0, 0, "conversations/" + "\n".join(images)).shuffle(rows)
        size = self.turns
        return [
            rows[start : start + (size or len(rows))]
            for rows in groups.values()
            for start in range(0, len(rows), size or len(rows))
        ]

    def __len__(self) -> int:
        """Return the number of conversations."""
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        """Return a conversation under the id of its first row.

        Raises:
            DataError: if a row is invalid, or its answer cannot be written as a phrase.
        """
        rows = [self.source[row] for row in self._rows[index]]
        return replace(rows[0], messages=tuple(message for row in rows for message in self._messages(row)), meta={})

    def _messages(self, row: Sample) -> tuple[Message, ...]:
        if not self.phrases:
            return row.messages
        name, value = (row.meta.get(key) for key in ("attribute", "answer"))
        if not isinstance(name, str) or not isinstance(value, str) or row.messages[-1].role != "assistant":
            raise DataError(
                f"{self.where(row)}: phrases are written from meta.attribute and meta.answer, and the row must end in "
                "the answer; set phrases=false for other data."
            )
        return (*row.messages[:-1], Message("assistant", phrase(name, value)))

    def fingerprint(self) -> str:
        """Return a SHA-256 of the rows' source and of how they are joined."""
        how: tuple[object, ...] = (self.source.fingerprint(), self.turns, self.phrases)
        if self.shuffle is not None:
            how += (self.shuffle,)
        return hashlib.sha256(repr(how).encode()).hexdigest()


def phrase(name: str, value: str) -> str:
    """Return a value as the phrase of a report: "big cell size"; "yes, granularity" and "no granularity"."""
    if value == "no":
        return f"no {name}"
    text = attribute_report({name: value}, value_only=VALUE_ONLY)
    return text if value in text else ", ".join(part for part in (value, text) if part)


def conversation_dataset(
    source: str | Sequence[str],
    image_root: str | None = None,
    turns: int | None = None,
    phrases: bool = False,
    center_crop: float = 1.0,
    repeated_ids: RepeatedIds = "refuse",
    shuffle: int | None = None,
) -> Conversations:
    """Conversations from JSON Lines with one question in each row: rows that show the same images are joined.

    Args:
        source: the ``.jsonl`` file, or a list of files.
        image_root: folder or ``.tar`` that the image paths are relative to.
        turns: most questions in a conversation; the others begin further conversations. Absent joins all of an image.
        phrases: write each answer as a phrase of a report ("big cell size"), from the row's ``meta.attribute`` and
            ``meta.answer``, so that :class:`medtune.judges.AttributeJudge` finds it in reports.
        center_crop: share of each image's sides that is kept around the centre.
        repeated_ids: as for :func:`medtune.datasets.jsonl_dataset`.
        shuffle: seed from which the order of the questions about an image is drawn; absent keeps the order of the
            rows. A virtual user never learns to ask the first question of a conversation. If the same question is
            always first, the model will never ask it.

    Raises:
        ConfigError: if ``turns`` is below 1.
        DataError: if a file is absent or empty, or the image root is absent.
    """
    if turns is not None and turns < 1:
        raise ConfigError(f"turns is {turns}; it must be at least 1, or absent for all questions about an image.")
    rows = jsonl_dataset(source, image_root, center_crop, repeated_ids=repeated_ids)
    return Conversations(rows, turns, phrases, shuffle)
