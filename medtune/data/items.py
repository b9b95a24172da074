"""What a batch is made of: one item per sample, made in a data worker."""

import random
from collections.abc import Callable
from typing import Any, Protocol

from PIL import Image

from medtune.data.sample import Sample
from medtune.data.source import SampleSource, place
from medtune.errors import DataError

IGNORED = -100
SampleTransform = Callable[[Sample, random.Random], Sample]
Sizes = list[tuple[int, int]]


class ModelTransform(Protocol):
    """What a model family's transform offers to the data side."""

    max_seq_len: int

    def __call__(self, sample: Sample, images: list[Image.Image]) -> dict[str, Any]:
        """Return "tokens" and "labels" (equally long lists) and the image tensors of a sample."""
        ...

    def collate(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        """Return a batch of such items."""
        ...

    def token_count(self, sample: Sample, sizes: Sizes | None = None) -> int:
        """Return the number of tokens of a sample whose images have these (width, height); opens no image."""
        ...

    def tile_count(self, width: int, height: int) -> int:
        """Return the number of tiles of an image."""
        ...


class Items(Protocol):
    """How a method makes items and batches. Picklable; holds no state that changes.

    A method that needs more than a sample (a second picture, another model's pixels, a rejected answer) has its own.
    """

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
        """Return a batch: what the objective reads, and "padding" (True at real tokens), which the trainer counts."""
        ...


class SampleItems:
    """The sample as the method shows it, through the model's transform.

    Args:
        sample_transform: the method's own change to a sample.
    """

    def __init__(self, sample_transform: SampleTransform) -> None:
        self.sample_transform = sample_transform

    def __call__(self, source: SampleSource, index: int, rng: random.Random, transform: Any) -> dict[str, Any]:
        """Open the images, change the sample, transform both.

        Raises:
            DataError: if it cannot be read, or nothing of it is supervised.
        """
        sample = source[index]
        images = source.open_images(sample)
        return self.item(source, sample, self.sample_transform(sample, rng), images, transform)

    def item(
        self, source: SampleSource, sample: Sample, shown: Sample, images: list[Image.Image], transform: Any
    ) -> dict[str, Any]:
        """Transform a sample as the method shows it.

        Raises:
            DataError: if nothing of it is supervised.
        """
        item = dict(transform(shown, images))
        if all(label == IGNORED for label in item["labels"]):
            raise DataError(
                f"{place(source, sample)}: nothing of the sample is supervised; it needs an assistant message "
                "with text."
            )
        return {**item, "id": sample.id}

    def blank(self, item: dict[str, Any]) -> dict[str, Any]:
        """Return the item with every label ignored."""
        return {**item, "labels": [IGNORED] * len(item["labels"])}

    def collate(self, items: list[dict[str, Any]], transform: Any) -> dict[str, Any]:
        """Return the transform's batch."""
        return transform.collate(items)
