"""Pictures whose features are kept on disk: each one found once in a data set, and read in place of being decoded."""

import hashlib
import json
import os
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from medtune.data.items import ModelTransform
from medtune.data.sample import Message, Sample
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


class FeatureShards:
    """Features of numbered pictures in safetensors files, of which a reader takes the rows that it wants.

    A shard holds pictures of consecutive numbers: ``features`` [tiles, k, d] of all of them, ``own`` [pictures, n,
    d_own] where there are such, and in its metadata why pictures are missing. Picklable.

    Args:
        folder: where the files are.
        pictures: what they are of.
        starts: number of the first picture of each shard, and the number of pictures at the end.
    """

    def __init__(self, folder: Path, pictures: Pictures, starts: np.ndarray) -> None:
        self.folder, self.pictures, self.starts = folder, pictures, starts
        self._tiles = np.concatenate([[0], np.cumsum(pictures.tiles)])
        self._open: dict[int, tuple[Any, dict[str, str]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave open files behind."""
        return {**self.__dict__, "_open": {}}

    def __len__(self) -> int:
        """Return the number of shards."""
        return len(self.starts) - 1

    def path(self, shard: int) -> Path:
        """Return a shard's file."""
        return self.folder / f"shard_{shard:05d}.safetensors"

    def tiles(self, shard: int) -> int:
        """Return the number of tiles in a shard."""
        return int(self._tiles[self.starts[shard + 1]] - self._tiles[self.starts[shard]])

    def numbers(self, shard: int) -> range:
        """Return the pictures of a shard."""
        return range(int(self.starts[shard]), int(self.starts[shard + 1]))

    def is_whole(self, shard: int) -> bool:
        """Return whether a shard's file is there, not torn, and of the right length."""
        try:
            with safe_open(self.path(shard), framework="pt") as file:
                return file.get_slice("features").get_shape()[0] == self.tiles(shard)
        except (OSError, SafetensorError):
            return False

    def write(self, shard: int, features: Tensor, own: Tensor | None, failed: dict[int, str]) -> None:
        """Write a shard aside and put it in its place.

        Raises:
            DataError: if the disk refuses.
        """
        path = self.path(shard)
        aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        tensors = {"features": features.contiguous()} | ({} if own is None else {"own": own.contiguous()})
        try:
            save_file(tensors, aside, {"failed": json.dumps({str(number): why for number, why in failed.items()})})
            with aside.open("rb") as file:
                os.fsync(file.fileno())
            aside.replace(path)
        except (OSError, SafetensorError) as error:
            raise DataError(f"feature_cache: cannot write {path}: {error}") from error
        finally:
            aside.unlink(missing_ok=True)

    def read(self, number: int) -> EncodedPicture:
        """Read one picture's features.

        Raises:
            DataError: if the picture could not be used when the features were made, or its file is gone or damaged.
        """
        shard = int(np.searchsorted(self.starts, number, side="right")) - 1
        file, failed = self._file(shard)
        if str(number) in failed:
            raise DataError(failed[str(number)])
        start = int(self.starts[shard])
        first, last = (int(self._tiles[at] - self._tiles[start]) for at in (number, number + 1))
        own = file.get_slice("own")[number - start : number - start + 1][0] if "own" in file.keys() else None
        width, height = self.pictures.sizes[number].tolist()
        return EncodedPicture((width, height), file.get_slice("features")[first:last], own)

    def _file(self, shard: int) -> tuple[Any, dict[str, str]]:
        if shard not in self._open:
            try:
                file = safe_open(self.path(shard), framework="pt")
            except (OSError, SafetensorError) as error:
                raise DataError(
                    f"feature_cache: {self.path(shard)} cannot be read ({error}); start again, and it is made anew"
                ) from error
            self._open[shard] = file, json.loads((file.metadata() or {}).get("failed", "{}"))
        return self._open[shard]


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
