"""Arrays of numbered items on disk, in files from which a reader reads only the rows that it needs."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from medtune.data.writing import replaced
from medtune.errors import ConfigError, DataError

_ROWS = ".rows"
_CHUNK = 16 << 20  # bytes that are hashed at once


class Shards:
    """Arrays of items in memory-mapped safetensors files. Picklable.

    A shard holds items of consecutive numbers. Each array of an item is [rows, ...]. The arrays of all items of a shard
    are concatenated in one tensor of that name. The number of rows of an item is known beforehand (``rows``), or is
    stored in the shard as ``NAME.rows``, or is 1. The metadata has notes on items that could not be made, and a BLAKE2b
    checksum of names, types, shapes, values and notes. The checksum is verified when a shard is first read in a run,
    once for all data workers. A shard without a checksum (written by an older version) is read without this check.

    Args:
        folder: folder of the files.
        starts: number of the first item of each shard, and the number of items at the end.
        rows: array's name -> rows of each item, [items], for arrays whose number of rows is known beforehand.
        key: the config key that names the folder, for messages.
    """

    def __init__(
        self, folder: Path, starts: np.ndarray, rows: Mapping[str, np.ndarray] | None = None, key: str = "precompute"
    ) -> None:
        self.folder, self.starts, self.key = folder, starts, key
        self._before = {name: _before(counts) for name, counts in (rows or {}).items()}
        self._verified = torch.zeros(len(starts) - 1, dtype=torch.uint8).share_memory_()
        self._open: dict[int, _OpenShard] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the open files, which cannot be pickled."""
        return {**self.__dict__, "_open": {}}

    def __len__(self) -> int:
        """Return the number of shards."""
        return len(self.starts) - 1

    def path(self, shard: int) -> Path:
        """Return a shard's file."""
        return self.folder / f"shard_{shard:05d}.safetensors"

    def numbers(self, shard: int) -> range:
        """Return the numbers of a shard's items."""
        return range(int(self.starts[shard]), int(self.starts[shard + 1]))

    def is_whole(self, shard: int) -> bool:
        """Return whether a shard's file exists, is complete and has the right length; reads no values."""
        try:
            with safe_open(self.path(shard), framework="pt") as file:
                names = [name for name in file.keys() if not name.endswith(_ROWS)]
                return self._before.keys() <= set(names) and all(
                    file.get_slice(name).get_shape()[0] == self._borders(file, shard, name)[-1] for name in names
                )
        except (OSError, SafetensorError):
            return False

    def write(self, shard: int, items: Sequence[Mapping[str, Tensor]], notes: Mapping[int, str] | None = None) -> None:
        """Write a shard to a temporary file and move it to its path.

        Args:
            shard: number of the shard.
            items: arrays of each of its items, with the same names.
            notes: item's number -> why it could not be made; reading the item raises an error with this text.

        Raises:
            DataError: if writing fails.
            ValueError: if the number of items or rows differs from the expected one.
        """
        numbers = self.numbers(shard)
        if len(items) != len(numbers):
            raise ValueError(f"shard {shard} has {len(numbers)} items, and {len(items)} were given")
        tensors: dict[str, Tensor] = {}
        for name in items[0]:
            counts = np.array([len(item[name]) for item in items])
            if name in self._before:
                known = np.diff(self._before[name])[numbers.start : numbers.stop]
                if not np.array_equal(counts, known):
                    raise ValueError(f"shard {shard}: {name} has other rows than were announced")
            elif (counts != 1).any():
                tensors[name + _ROWS] = torch.from_numpy(counts)
            tensors[name] = torch.cat([item[name] for item in items]).contiguous()
        noted = json.dumps({str(number): why for number, why in (notes or {}).items()})
        metadata = {"failed": noted, "blake2b": _checksum(sorted(tensors), tensors.__getitem__, noted)}
        path = self.path(shard)
        try:
            with replaced(path) as aside:
                save_file(tensors, aside, metadata)
        except (OSError, SafetensorError) as error:
            raise DataError(f"{self.key}: cannot write {path}: {error}") from error
        self._verified[shard] = 1  # the file holds what was just in memory

    def item(self, number: int) -> dict[str, Tensor]:
        """Read one item's arrays.

        Raises:
            DataError: if the item could not be made.
            ConfigError: if its file is missing, incomplete or damaged; a run must not skip this as an unusable sample.
        """
        shard = int(np.searchsorted(self.starts, number, side="right")) - 1
        opened = self._opened(shard)
        if str(number) in opened.notes:
            raise DataError(opened.notes[str(number)])
        at = number - int(self.starts[shard])
        return {
            name: opened.file.get_slice(name)[int(borders[at]) : int(borders[at + 1])]
            for name, borders in opened.borders.items()
        }

    def _borders(self, file: Any, shard: int, name: str) -> np.ndarray:
        """Return the first row of each item of a shard, and at the end the number of rows."""
        numbers = self.numbers(shard)
        if name in self._before:
            before = self._before[name][numbers.start : numbers.stop + 1]
            return before - before[0]
        if name + _ROWS in file.keys():
            return _before(file.get_tensor(name + _ROWS).numpy())
        return np.arange(len(numbers) + 1)

    def _opened(self, shard: int) -> "_OpenShard":
        if shard not in self._open:
            try:
                file = safe_open(self.path(shard), framework="pt")
                metadata = file.metadata() or {}
                names = [name for name in file.keys() if not name.endswith(_ROWS)]
                opened = _OpenShard(
                    file,
                    {name: self._borders(file, shard, name) for name in names},
                    json.loads(metadata.get("failed", "{}")),
                )
                if not self._verified[shard]:
                    self._verify(shard, file, metadata)
            except (OSError, SafetensorError, ValueError) as error:
                raise ConfigError(
                    f"{self.key}: {self.path(shard)} cannot be read ({error}); start again, and it is made anew"
                ) from error
            self._open[shard] = opened
        return self._open[shard]

    def _verify(self, shard: int, file: Any, metadata: Mapping[str, str]) -> None:
        wanted = metadata.get("blake2b")
        if wanted is not None and wanted != _checksum(
            sorted(file.keys()), file.get_slice, metadata.get("failed", "{}")
        ):
            raise ConfigError(
                f"{self.key}: {self.path(shard)} was damaged after it was written (its checksum is another); delete "
                "that file and start again, and it is made anew"
            )
        self._verified[shard] = 1


class _OpenShard:
    """A shard's file, the first rows of its items, and the notes on them."""

    def __init__(self, file: Any, borders: dict[str, np.ndarray], notes: dict[str, str]) -> None:
        self.file, self.borders, self.notes = file, borders, notes


def _before(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)])


def _checksum(names: Sequence[str], array: Any, notes: str) -> str:
    """Return BLAKE2b over names, types, shapes, values and notes; ``array`` returns a tensor or a slice of a file."""
    digest = hashlib.blake2b(notes.encode(), digest_size=16)
    for name in names:
        values = array(name)
        shape = list(values.shape if isinstance(values, Tensor) else values.get_shape())
        first = values[:0]
        digest.update(f"|{name}|{first.dtype}|{shape}|".encode())
        for chunk in _chunks(values, shape, first.element_size()):
            digest.update(chunk.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _chunks(values: Any, shape: list[int], size: int) -> Iterator[Tensor]:
    rows = max(1, _CHUNK // max(1, size * int(np.prod(shape[1:]))))
    for start in range(0, shape[0], rows):
        yield values[start : min(start + rows, shape[0])]
