"""Items, the parts of a batch: one item per sample, made in a data worker."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from PIL import Image

from medtune.data.sample import Sample
from medtune.data.source import SampleSource, place
from medtune.errors import DataError
from medtune.losses.cross_entropy import IGNORE_INDEX

SampleTransform = Callable[[Sample, random.Random], Sample]
Sizes = list[tuple[int, int]]


class ModelTransform(Protocol):
    """The interface of a model family's transform that data code uses."""

    max_seq_len: int

    def __call__(self, sample: Sample, images: list[Image.Image]) -> dict[str, Any]:
        """Return "tokens" and "labels" (equally long lists) and the image tensors of a sample."""
        ...

    def collate(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the items as a batch."""
        ...

    def token_counts(self, sample: Sample, sizes: Sizes | None = None) -> tuple[int, int]:
        """Return the number of tokens of a sample, given (width, height) of its images, and how many are supervised.

        Opens no image.
        """
        ...

    def tile_count(self, width: int, height: int) -> int:
        """Return the number of tiles of an image."""
        ...


class Row(NamedTuple):
    """The size of one row of tokens that an item holds.

    Attributes:
        tokens: number of all tokens.
        supervised: number of tokens with a loss, after the shift by one.
        tiles: image tiles that the row sees.
        drawn: whether each epoch draws a different row (a negative), so that batches cannot be planned by its size.
    """

    tokens: int
    supervised: int
    tiles: int
    drawn: bool = False


class BatchItems(Protocol):
    """How items and batches are made. Picklable; holds no state that changes."""

    def __call__(self, source: SampleSource, index: int, rng: random.Random, transform: Any) -> dict[str, Any]:
        """Make the item of one sample; everything random comes from ``rng``.

        Raises:
            DataError: if the sample cannot be used.
        """
        ...

    def blank(self, item: dict[str, Any]) -> dict[str, Any]:
        """Return the item with nothing to learn in it: it keeps a batch's shape and has no weight."""
        ...

    def collate(self, items: list[dict[str, Any]], transform: Any) -> dict[str, Any]:
        """Return a batch: the objective's inputs, and "padding" (True at real tokens), which the trainer counts."""
        ...


class Items(BatchItems, Protocol):
    """How a method makes items of samples, and measures their sizes before training.

    A method that needs more than a sample (a second image, another model's pixels, a rejected answer) has its own
    class. Objects that make the same items are equal (``==``), so that they are measured once.
    """

    def measure(self, source: SampleSource, index: int, rng: random.Random, transform: Any) -> tuple[Row, ...]:
        """Return the size of every row that the item of one sample holds; opens no image.

        If it gets the generator that ``__call__`` gets in the first epoch, it returns the size of that epoch's item.

        Raises:
            DataError: if the item cannot be made: a row is too long, or has no supervised token.
        """
        ...


@dataclass(frozen=True)
class SampleItems:
    """Items of single samples: the sample as the method changes it, through the model's transform.

    Attributes:
        sample_transform: the change that the method makes to a sample.
    """

    sample_transform: SampleTransform

    def __call__(self, source: SampleSource, index: int, rng: random.Random, transform: Any) -> dict[str, Any]:
        """Open the images, change the sample, apply the model's transform to both.

        Raises:
            DataError: if the sample cannot be read, or has no supervised token.
        """
        sample = source[index]
        images = source.open_images(sample)
        return self.item(source, sample, self.sample_transform(sample, rng), images, transform)

    def item(
        self, source: SampleSource, sample: Sample, shown: Sample, images: list[Image.Image], transform: Any
    ) -> dict[str, Any]:
        """Apply the model's transform to a sample as the method changed it.

        Raises:
            DataError: if the sample has no supervised token.
        """
        item = dict(transform(shown, images))
        if all(label == IGNORE_INDEX for label in item["labels"]):
            raise DataError(
                f"{place(source, sample)}: nothing of the sample is supervised; it needs an assistant message "
                "with text."
            )
        return {**item, "id": sample.id, "weight": sample.weight}

    def measure(self, source: SampleSource, index: int, rng: random.Random, transform: Any) -> tuple[Row, ...]:
        """Return the size of the sample's one row.

        Raises:
            DataError: if the sample or its images cannot be read, it has no answer, or it is too long.
        """
        sample = source[index]
        shown = self.sample_transform(sample, rng)
        check_answer(source, shown)
        return (measured_row(source, shown, source.image_sizes(sample), transform),)

    def blank(self, item: dict[str, Any]) -> dict[str, Any]:
        """Return the item with every label ignored."""
        return {**item, "labels": [IGNORE_INDEX] * len(item["labels"])}

    def collate(self, items: list[dict[str, Any]], transform: Any) -> dict[str, Any]:
        """Return the transform's batch, with the samples' weights (:func:`with_weights`)."""
        return with_weights(transform.collate(items), items)


def with_weights(batch: dict[str, Any], items: list[dict[str, Any]]) -> dict[str, Any]:
    """Add ``weights`` [b], in fp64, to a batch in which a sample has another weight than 1.

    Without such a sample the batch stays as it is, so that the loss is computed as before.
    """
    weights = [item.get("weight", 1.0) for item in items]
    if all(weight == 1.0 for weight in weights):
        return batch
    return {**batch, "weights": torch.tensor(weights, dtype=torch.float64)}


def check_answer(source: SampleSource, shown: Sample) -> None:
    """Refuse a conversation without text from the assistant.

    Raises:
        DataError: naming file and row.
    """
    if not any(message.role == "assistant" and message.content.strip() for message in shown.messages):
        raise DataError(f"{place(source, shown)}: no assistant message, so nothing to learn; add the answer.")


def measured_row(source: SampleSource, shown: Sample, sizes: Sizes, transform: Any, drawn: bool = False) -> Row:
    """Return the size of a conversation as one row.

    Args:
        source: the source of the conversation, for messages.
        shown: the conversation as the method changed it.
        sizes: (width, height) of its images.
        transform: the model's transform.
        drawn: as in :class:`Row`.

    Raises:
        DataError: if it is longer than the model accepts, or has no supervised token.
    """
    tiles = sum(transform.tile_count(width, height) for width, height in sizes)
    tokens, supervised = transform.token_counts(shown, sizes)
    if tokens > transform.max_seq_len:
        raise DataError(
            f"{place(source, shown)}: {tokens} tokens, the limit is {transform.max_seq_len}; shorten the "
            "text or raise max_seq_len."
        )
    if not supervised:
        raise DataError(f"{place(source, shown)}: no token is supervised, so nothing to learn; add an answer.")
    return Row(tokens, supervised, tiles, drawn)
