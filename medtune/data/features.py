"""Images whose features are kept on disk: each distinct image is encoded once, and its features are read instead."""

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from medtune.data.items import ModelTransform
from medtune.data.sample import Message, Sample
from medtune.data.shards import Shards
from medtune.data.source import SampleSource, place
from medtune.errors import DataError
from medtune.progress import tqdm

_TURNS = (Message("user", "?"), Message("assistant", "."))  # a transform needs a text as well as the image


@dataclass(frozen=True)
class EncodedPicture:
    """The stored features of an image, used in place of the image.

    Attributes:
        size: width and height in pixels.
        features: features of its tiles from the model's encoder, [tiles, k, d].
        own: features from the method's auxiliary encoder, [n, d_own]; None if the method has none.
    """

    size: tuple[int, int]
    features: Tensor
    own: Tensor | None = None


def picture_keys(source: SampleSource, sample: Sample) -> list[str]:
    """Return keys that identify a sample's images within the source: their paths, with the part of a mixture."""
    keys = getattr(source, "picture_keys", None)
    return keys(sample) if keys is not None else list(sample.images)


@dataclass(frozen=True)
class Pictures:
    """The distinct images of a data set, numbered in order of first appearance; 56 bytes each.

    Attributes:
        hashes: 64-bit hash of each image's key, sorted.
        order: number of the image of each hash.
        rows: position in the source of the sample in which each image first appears.
        slots: which of that sample's images it is.
        sizes: width and height of each, [images, 2].
        tiles: tiles of each.
        digest: SHA-256 of all keys and sizes in order.
    """

    hashes: np.ndarray
    order: np.ndarray
    rows: np.ndarray
    slots: np.ndarray
    sizes: np.ndarray
    tiles: np.ndarray
    digest: str

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.rows)

    def number(self, key: str) -> int | None:
        """Return an image's number, or None for an image that was not among the samples."""
        wanted = np.uint64(_hash(key))
        at = int(np.searchsorted(self.hashes, wanted))
        return int(self.order[at]) if at < len(self) and self.hashes[at] == wanted else None


def find_pictures(
    source: SampleSource, indices: Iterable[int], transform: ModelTransform, progress: bool = True
) -> Pictures:
    """List the distinct images of samples; reads headers, decodes nothing.

    Args:
        source: the samples.
        indices: positions of the samples that are used.
        transform: the model's transform, which counts tiles.
        progress: show a bar with the time left.

    Raises:
        DataError: as the source does.
    """
    digest, seen = hashlib.sha256(), set[int]()
    bar = tqdm(list(indices), desc=f"images of {source.name}", unit="row", disable=not progress, leave=False)

    def distinct() -> Iterator[tuple[int, int, int, int, int, int]]:
        for index in bar:
            sample = source[index]
            keys = picture_keys(source, sample)
            if all(_hash(key) in seen for key in keys):
                continue
            for slot, (key, (width, height)) in enumerate(zip(keys, source.image_sizes(sample), strict=True)):
                if (hashed := _hash(key)) not in seen:
                    seen.add(hashed)
                    digest.update(f"{key}|{width}|{height}\n".encode("utf-8", "surrogatepass"))
                    yield hashed, index, slot, width, height, transform.tile_count(width, height)

    table = np.fromiter(distinct(), dtype=np.dtype((np.uint64, 6)))
    hashes, *others = table.T.copy()
    order = np.argsort(hashes)
    rows, slots, widths, heights, tiles = (column.astype(np.int64) for column in others)
    sizes = np.stack([widths, heights], axis=1)
    return Pictures(hashes[order], order, rows, slots, sizes, tiles, digest.hexdigest())


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


class PictureItems:
    """Makes an item of each image, addressed by its number; used in place of a method's items.

    Args:
        pictures: the images of the source.
        pixels: the transform of the method's auxiliary encoder; None if the method has none.
        keep_going: replace an image that cannot be used by a black one and note the error, instead of raising it.
    """

    def __init__(
        self, pictures: Pictures, pixels: Callable[[Image.Image], Tensor] | None = None, keep_going: bool = False
    ) -> None:
        self.pictures, self.pixels, self.keep_going = pictures, pixels, keep_going

    def __call__(self, source: SampleSource, index: int, rng: random.Random, transform: Any) -> dict[str, Any]:
        """Decode one image and cut it into tiles.

        Raises:
            DataError: if it cannot be used, or its number of tiles differs from the one computed from its header.
        """
        sample = source[int(self.pictures.rows[index])]
        name = sample.images[int(self.pictures.slots[index])]
        system = tuple(turn for turn in sample.messages if turn.role == "system")
        alone = Sample(sample.id, (name,), system + _TURNS, sample.meta)
        failed = None
        try:
            (image,) = source.open_images(alone)
        except DataError as error:
            if not self.keep_going:
                raise
            width, height = self.pictures.sizes[index].tolist()
            image, failed = Image.new("RGB", (width, height)), str(error)
        item = {**transform(alone, [image]), "failed": failed}
        if len(item["images"][0]) != self.pictures.tiles[index]:
            raise DataError(f"{place(source, sample)}: the image {name} changed while it was read; start again.")
        if self.pixels is not None:
            item["own"] = self.pixels(image)
        return item

    def blank(self, item: dict[str, Any]) -> dict[str, Any]:
        """Return the item unchanged: no loss is computed on it."""
        return item

    def collate(self, items: list[dict[str, Any]], transform: Any) -> dict[str, Any]:
        """Return ``vision`` for the model's encoder, ``own`` [b, 3, h, w] for an auxiliary one, and ``failed``."""
        batch = {"vision": transform.collate(items)["vision"], "failed": [item["failed"] for item in items]}
        return batch if self.pixels is None else {**batch, "own": torch.stack([item["own"] for item in items])}


class FeatureShards(Shards):
    """Features of numbered images: ``features`` [tiles, k, d] and, with an auxiliary encoder, ``own`` [1, n, d_own].

    Args:
        folder: folder of the shard files.
        pictures: the images whose features are stored.
        starts: number of the first image of each shard, and the number of images at the end.
    """

    def __init__(self, folder: Path, pictures: Pictures, starts: np.ndarray) -> None:
        super().__init__(folder, starts, {"features": pictures.tiles}, "feature_cache")
        self.pictures = pictures

    def read(self, number: int) -> EncodedPicture:
        """Read one image's features.

        Raises:
            DataError: if the image could not be used when the features were computed.
            ConfigError: if its file is missing, incomplete or damaged.
        """
        arrays = self.item(number)
        width, height = self.pictures.sizes[number].tolist()
        return EncodedPicture((width, height), arrays["features"], arrays["own"][0] if "own" in arrays else None)


class EncodedSource:
    """A source that returns features in place of images; everything else is passed through unchanged.

    Args:
        source: the samples.
        shards: the features of their images.
    """

    def __init__(self, source: SampleSource, shards: FeatureShards) -> None:
        self.source, self.shards, self.name = source, shards, source.name

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        """Return a sample."""
        return self.source[index]

    def open_images(self, sample: Sample) -> list[Any]:
        """Read the features of a sample's images.

        Raises:
            DataError: for an image without stored features.
        """
        numbers = [self.shards.pictures.number(key) for key in picture_keys(self.source, sample)]
        for number, name in zip(numbers, sample.images, strict=True):
            if number is None:
                raise DataError(
                    f"{self.where(sample)}: the image {name} was not among the images at the start of the run."
                )
        return [self.shards.read(number) for number in numbers if number is not None]

    def image_sizes(self, sample: Sample) -> list[tuple[int, int]]:
        """Return the sizes of a sample's images."""
        return self.source.image_sizes(sample)

    def where(self, sample: Sample) -> str:
        """Return the text that names a sample in a message."""
        return place(self.source, sample)

    def fingerprint(self) -> str:
        """Return the fingerprint of the source."""
        return self.source.fingerprint()
