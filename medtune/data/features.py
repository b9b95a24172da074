"""Pictures whose features are kept on disk: each one found once in a data set, and read in place of being decoded."""

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
from tqdm import tqdm

from medtune.data.items import ModelTransform
from medtune.data.sample import Message, Sample
from medtune.data.shards import Shards
from medtune.data.source import SampleSource, place
from medtune.errors import DataError

_TURNS = (Message("user", "?"), Message("assistant", "."))  # a transform wants a text beside the picture


@dataclass(frozen=True)
class EncodedPicture:
    """Stands for a picture whose features are known.

    Attributes:
        size: width and height in pixels.
        features: of its tiles, as the model's encoder gives them, [tiles, k, d].
        own: as the method's own encoder gives them, [n, d_own]; None where it has none.
    """

    size: tuple[int, int]
    features: Tensor
    own: Tensor | None = None


def picture_keys(source: SampleSource, sample: Sample) -> list[str]:
    """What tells a sample's pictures from all others of the source: their paths, and the part of a mixture."""
    keys = getattr(source, "picture_keys", None)
    return keys(sample) if keys is not None else list(sample.images)


@dataclass(frozen=True)
class Pictures:
    """The distinct pictures of a data set, numbered as they first appear; 56 bytes each.

    Attributes:
        hashes: 64 bits of each picture's key, sorted.
        order: the number of the picture of each hash.
        rows: where in the source each picture first appears.
        slots: which of that sample's pictures it is.
        sizes: width and height of each, [pictures, 2].
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
        """Return the number of pictures."""
        return len(self.rows)

    def number(self, key: str) -> int | None:
        """Return a picture's number, or None for one that was not among the samples."""
        wanted = np.uint64(_hash(key))
        at = int(np.searchsorted(self.hashes, wanted))
        return int(self.order[at]) if at < len(self) and self.hashes[at] == wanted else None


def find_pictures(
    source: SampleSource, indices: Iterable[int], transform: ModelTransform, progress: bool = True
) -> Pictures:
    """Look through samples for their pictures; reads headers, decodes nothing.

    Args:
        source: the samples.
        indices: positions of those that are used.
        transform: counts tiles.
        progress: show a bar with the time left.

    Raises:
        DataError: as the source does.
    """
    digest, seen = hashlib.sha256(), set[int]()
    bar = tqdm(list(indices), desc=f"pictures of {source.name}", unit="row", disable=not progress, leave=False)

    def found() -> Iterator[tuple[int, int, int, int, int, int]]:
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

    table = np.fromiter(found(), dtype=np.dtype((np.uint64, 6)))
    hashes, *others = table.T.copy()
    order = np.argsort(hashes)
    rows, slots, widths, heights, tiles = (column.astype(np.int64) for column in others)
    sizes = np.stack([widths, heights], axis=1)
    return Pictures(hashes[order], order, rows, slots, sizes, tiles, digest.hexdigest())


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


class PictureItems:
    """Makes an item of each picture, addressed by its number; stands where a method's items stand.

    Args:
        pictures: of the source.
        pixels: the transform of the method's own encoder; None where it has none.
        keep_going: a picture that cannot be used is replaced by a black one and noted, instead of raising.
    """

    def __init__(
        self, pictures: Pictures, pixels: Callable[[Image.Image], Tensor] | None = None, keep_going: bool = False
    ) -> None:
        self.pictures, self.pixels, self.keep_going = pictures, pixels, keep_going

    def __call__(self, source: SampleSource, index: int, rng: random.Random, transform: Any) -> dict[str, Any]:
        """Decode and cut one picture.

        Raises:
            DataError: if it cannot be used, or has other tiles than its header promised.
        """
        sample = source[int(self.pictures.rows[index])]
        name = sample.images[int(self.pictures.slots[index])]
        system = tuple(turn for turn in sample.messages if turn.role == "system")
        alone = Sample(sample.id, (name,), system + _TURNS, sample.meta)
        failed = None
        try:
            (picture,) = source.open_images(alone)
        except DataError as error:
            if not self.keep_going:
                raise
            width, height = self.pictures.sizes[index].tolist()
            picture, failed = Image.new("RGB", (width, height)), str(error)
        item = {**transform(alone, [picture]), "failed": failed}
        if len(item["images"][0]) != self.pictures.tiles[index]:
            raise DataError(f"{place(source, sample)}: the image {name} changed while it was read; start again.")
        if self.pixels is not None:
            item["own"] = self.pixels(picture)
        return item

    def blank(self, item: dict[str, Any]) -> dict[str, Any]:
        """Return the item: nothing of it is learned."""
        return item

    def collate(self, items: list[dict[str, Any]], transform: Any) -> dict[str, Any]:
        """Return ``vision`` for the model's encoder, ``own`` [b, 3, h, w] where there is one, and ``failed``."""
        batch = {"vision": transform.collate(items)["vision"], "failed": [item["failed"] for item in items]}
        return batch if self.pixels is None else {**batch, "own": torch.stack([item["own"] for item in items])}


class FeatureShards(Shards):
    """Features of numbered pictures: ``features`` [tiles, k, d] and, where there are such, ``own`` [1, n, d_own].

    Args:
        folder: where the files are.
        pictures: what they are of.
        starts: number of the first picture of each shard, and the number of pictures at the end.
    """

    def __init__(self, folder: Path, pictures: Pictures, starts: np.ndarray) -> None:
        super().__init__(folder, starts, {"features": pictures.tiles}, "feature_cache")
        self.pictures = pictures

    def read(self, number: int) -> EncodedPicture:
        """Read one picture's features.

        Raises:
            DataError: if the picture could not be used when the features were made.
            ConfigError: if its file is gone, torn or damaged.
        """
        found = self.item(number)
        width, height = self.pictures.sizes[number].tolist()
        return EncodedPicture((width, height), found["features"], found["own"][0] if "own" in found else None)


class EncodedSource:
    """A source that gives features in place of pictures; all else is the source's own.

    Args:
        source: the samples.
        shards: the features of their pictures.
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
        """Read the features of a sample's pictures.

        Raises:
            DataError: for a picture that has none.
        """
        numbers = [self.shards.pictures.number(key) for key in picture_keys(self.source, sample)]
        for number, name in zip(numbers, sample.images, strict=True):
            if number is None:
                raise DataError(f"{self.where(sample)}: the image {name} was not among those looked at at the start.")
        return [self.shards.read(number) for number in numbers if number is not None]

    def image_sizes(self, sample: Sample) -> list[tuple[int, int]]:
        """Sizes of a sample's pictures."""
        return self.source.image_sizes(sample)

    def where(self, sample: Sample) -> str:
        """Return what names a sample in a message."""
        return place(self.source, sample)

    def fingerprint(self) -> str:
        """Return that of the source."""
        return self.source.fingerprint()
