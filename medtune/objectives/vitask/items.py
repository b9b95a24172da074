"""The data of VITask: the image for the task-specific model, and another image as the negative."""

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from medtune.data.features import EncodedPicture
from medtune.data.items import Row, SampleItems, check_answer, measured_row, with_weights
from medtune.data.sample import Sample
from medtune.data.source import SampleSource, place
from medtune.errors import DataError
from medtune.models.common.chat_template import SampleTooLong

Negatives = Literal["sampled", "roll"]
Pixels = Callable[[Image.Image], Tensor]


def question_key(sample: Sample, within_set: bool = False) -> int:
    """A 64-bit hash of what a negative must have in common: the user's words and the number of images.

    Args:
        sample: The sample.
        within_set: The set that ``meta.set`` names must be the same too. Two sets that are asked by one instruction
            (two cameras, two hospitals) otherwise give each other negatives that differ in more than the response.
    """
    words = [str(len(sample.images)), *(turn.content for turn in sample.messages if turn.role == "user")]
    return _key([*words, f"set {sample.meta.get('set', '')}"] if within_set else words)


def response_key(sample: Sample) -> int:
    """A 64-bit hash of what must differ in a negative: the assistant's words."""
    return _key([turn.content.strip() for turn in sample.messages if turn.role == "assistant"])


def _key(texts: Sequence[str]) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for text in texts:
        raw = text.encode("utf-8", "surrogatepass")
        digest.update(len(raw).to_bytes(8, "big") + raw)
    return int.from_bytes(digest.digest(), "big")


class NegativeIndex:
    """Finds samples with the same question and another response. It needs 24 bytes per row and opens no image.

    Args:
        source: The samples.
        usable: Positions of the samples that may be negatives; None, during the data check, takes all rows that can be
            read.
        within_set: Whether a negative must be of the same set (``meta.set``).

    Raises:
        DataError: If no question has two different responses, so that no sample has a negative; not if ``usable`` is
            None.
    """

    def __init__(self, source: SampleSource, usable: np.ndarray | None, within_set: bool = False) -> None:
        self.within_set = within_set
        table = np.fromiter(_keys(source, usable, within_set), dtype=np.dtype((np.uint64, 3)))
        order = np.lexsort((table[:, 1], table[:, 0]))
        self._questions, self._responses, positions = table[order].T.copy()
        self._positions = positions.astype(np.int64)
        same = self._questions[1:] == self._questions[:-1]
        if usable is not None and not bool((same & (self._responses[1:] != self._responses[:-1])).any()):
            raise DataError(
                f"{source.name}: every instruction has one response only, so no sample has a negative image for "
                "contrastive response tuning (same instruction, other response); set objective.beta to 0, or take "
                "data with several classes"
            )

    def draw(self, sample: Sample, rng: random.Random) -> int | None:
        """Position of one of the samples with the same question and another response, each equally likely, or None."""
        first, end = self._span(self._questions, question_key(sample, self.within_set), 0, len(self._questions))
        own, after = self._span(self._responses, response_key(sample), first, end)
        others = (end - first) - (after - own)
        if others <= 0:
            return None
        chosen = first + rng.randrange(others)
        return int(self._positions[chosen + (after - own if chosen >= own else 0)])

    @staticmethod
    def _span(values: np.ndarray, key: int, first: int, end: int) -> tuple[int, int]:
        part = values[first:end]
        left, right = (int(np.searchsorted(part, np.uint64(key), side)) for side in ("left", "right"))
        return first + left, first + right


def _keys(source: SampleSource, usable: np.ndarray | None, within_set: bool) -> Iterator[tuple[int, int, int]]:
    """Keys of question and response, and the position, of each sample."""
    for index in range(len(source)) if usable is None else usable.tolist():
        try:
            sample = source[index]
        except DataError:
            if usable is not None:
                raise
            continue  # the data check reports this sample
        if within_set and "set" not in sample.meta and usable is not None:
            raise DataError(
                f"{place(source, sample)}: objective.within_set is true, but the sample names no set (meta.set); name "
                "the set in each sample, or leave the key out"
            )
        yield question_key(sample, within_set), response_key(sample), index


@dataclass(frozen=True)
class VITaskItems(SampleItems):
    """A sample's item, with the pixels for the task-specific model and the item of its negative.

    A negative is the conversation of the sample with the images of another sample.

    Attributes:
        sample_transform: As for :class:`medtune.data.items.SampleItems`.
        pixels: The task-specific model's transform; None if there are no exemplars.
        negatives: ``sampled`` draws from the whole set, ``roll`` takes the next row of the micro-batch; None takes
            none.
        index: The index of the samples, for ``sampled``.
        within_set: Whether a negative must be of the same set.
    """

    pixels: Pixels | None
    negatives: Negatives | None
    index: NegativeIndex | None
    within_set: bool = False

    def __call__(self, source: SampleSource, index: int, rng: random.Random, transform: Any) -> dict[str, Any]:
        """Make the item; see :class:`medtune.data.items.SampleItems`.

        Raises:
            DataError: as there, and if the sample has no image for the task-specific model.
        """
        sample = source[index]
        images = source.open_images(sample)
        shown = self.sample_transform(sample, rng)
        item = self.item(source, sample, shown, images, transform)
        if self.pixels is not None:
            self._check_image(source, sample)
            item |= _exemplar(images[-1], self.pixels)
        if self.negatives == "roll":
            item["keys"] = (question_key(sample, self.within_set), response_key(sample))
        if self.negatives == "sampled":
            item["negative"] = self._negative(source, sample, shown, rng, transform)
        return item

    def measure(self, source: SampleSource, index: int, rng: random.Random, transform: Any) -> tuple[Row, ...]:
        """The row of the sample, and the row of its negative, which has the image tokens of another image.

        Raises:
            DataError: For the same reasons as making the item, except those for which an image must be opened.
        """
        sample = source[index]
        shown = self.sample_transform(sample, rng)
        check_answer(source, shown)
        row = measured_row(source, shown, source.image_sizes(sample), transform)
        if self.pixels is not None:
            self._check_image(source, sample)
        drawn = self.index.draw(sample, rng) if self.index is not None else None
        if drawn is None:
            return (row,)
        other = source[drawn]
        try:
            return row, measured_row(source, _with_images(shown, other), source.image_sizes(other), transform, True)
        except DataError:  # the other images have more tiles, or cannot be read (reported for the other sample)
            return (row,)

    def _check_image(self, source: SampleSource, sample: Sample) -> None:
        if not sample.images:
            raise DataError(
                f"{place(source, sample)}: the sample has no image, so the task-specific model has no exemplar for "
                "it; leave such samples out (on_error: skip), or set objective.exemplar to none."
            )

    def _negative(
        self, source: SampleSource, sample: Sample, shown: Sample, rng: random.Random, transform: Any
    ) -> dict[str, Any] | None:
        drawn = None if self.index is None else self.index.draw(sample, rng)
        if drawn is None:
            return None
        other = source[drawn]
        try:
            return dict(transform(_with_images(shown, other), source.open_images(other)))
        except SampleTooLong:  # the other image has more tiles
            return None

    def blank(self, item: dict[str, Any]) -> dict[str, Any]:
        """Return the item with all labels ignored, including those of the negative."""
        blank = super().blank(item)
        return {**blank, "negative": super().blank(item["negative"])} if item.get("negative") else blank

    def collate(self, items: list[dict[str, Any]], transform: Any) -> dict[str, Any]:
        """Return the transform's batch, with further keys if the stage needs them.

        - ``exemplar_pixels`` [b, 3, h, w], or ``exemplar_features`` [b, k, d_tsm] if they were computed before;
        - ``contrasted`` [b], True where a sample has a negative;
        - ``partner`` [b], for negatives from the batch: the row of each sample's negative;
        - ``negative``, for sampled negatives: a dict of ``tokens``, ``labels`` and ``vision_mask``. Their images are
          the second b rows of ``vision`` or ``features``.

        A sample without a negative takes its own item as negative.
        """
        if self.negatives is None:
            batch = transform.collate(items)
        elif self.negatives == "roll":
            partner, contrasted = _next_rows(items)
            batch = {**transform.collate(items), "partner": partner, "contrasted": contrasted}
        else:
            batch = _with_negatives(items, transform)
        for name in ("exemplar_pixels", "exemplar_features"):
            if name in items[0]:
                batch[name] = torch.stack([item[name] for item in items])
        return with_weights(batch, items)


def _with_images(shown: Sample, other: Sample) -> Sample:
    """A conversation about another sample's images."""
    return Sample(shown.id, other.images, shown.messages, shown.meta)


def _exemplar(image: Image.Image | EncodedPicture, pixels: Pixels) -> dict[str, Tensor | None]:
    if isinstance(image, EncodedPicture):
        return {"exemplar_features": image.own}
    return {"exemplar_pixels": pixels(image)}


def _next_rows(items: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
    """For each row, the next row, and whether the images of that row can be its negative.

    They can if the question is the same, the response is another, and the images have the same number of tiles, so that
    they fit the tokens of the row.
    """
    partner = [(row + 1) % len(items) for row in range(len(items))]
    fits = [_is_negative(items[row], items[other]) for row, other in enumerate(partner)]
    return torch.tensor(partner), torch.tensor(fits)


def _is_negative(item: dict[str, Any], other: dict[str, Any]) -> bool:
    (question, response), (same, otherwise) = item["keys"], other["keys"]
    tiles = [len(image) for image in item["images"]]
    alike = tiles == [len(image) for image in other["images"]] and item.get("grids") == other.get("grids")
    return question == same and response != otherwise and alike


def _with_negatives(items: list[dict[str, Any]], transform: Any) -> dict[str, Any]:
    """One collation for samples and negatives, so that all rows have one length and all images one shape."""
    both = transform.collate([*items, *(item["negative"] or item for item in items)])
    count = len(items)
    text = ("tokens", "labels", "padding", "vision_mask")
    return {
        **both,
        **{name: both[name][:count] for name in text},
        "negative": {name: both[name][count:] for name in text},
        "contrasted": torch.tensor([item["negative"] is not None for item in items]),
    }
