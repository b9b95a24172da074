"""MedMNIST's .npz files, read without loading a split's images into memory and without pickle."""

import lzma
import math
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np

from medtune.data.image_names import hidden_part
from medtune.data.opening import refuse_special
from medtune.datasets.medmnist.facts import SPLITS, Facts
from medtune.errors import DataError

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_BEST_RATIO = 1032  # no DEFLATE stream becomes larger than this many times its size
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    OSError,
    ValueError,
    TypeError,
    SyntaxError,
    OverflowError,
    MemoryError,
    RuntimeError,  # an encrypted file; NotImplementedError: an unknown compression
    KeyError,
    IndexError,
)


class MedMnistFile:
    """One set's file: images as ``uint8`` ``[n, h, w]`` or ``[n, h, w, 3]``, labels as integers ``[n, 1]``.

    A multi-label set has labels ``[n, classes]`` of 0 and 1. Everything but the pixels is checked here.

    Args:
        path: the file; official sizes are 28, 64, 128 and 224 pixels, and any other is read too.
        facts: the set that it holds.

    Raises:
        DataError: for a file that is absent, damaged or contains Python objects; a missing split; images or labels of
            another shape or type; a label that is not a class. The message names file, array and row.
    """

    def __init__(self, path: Path, facts: Facts) -> None:
        self.path, self.facts = path, facts
        self._check_names()
        self.sizes = {split: self._check_images(split) for split in SPLITS}
        self.labels = {split: self._read_labels(split) for split in SPLITS}

    def indices(self, split: str, row: int) -> tuple[int, ...]:
        """Return the right classes of an image."""
        values = self.labels[split][row]
        if self.facts.words.task == "multi_label":
            return tuple(int(index) for index in np.flatnonzero(values))
        return (int(values[0]),)

    def images(self, split: str, rows: Iterable[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (row, pixels) of the rows asked for, in the order of the file.

        Raises:
            DataError: if the file is damaged.
        """
        wanted, name = set(rows), f"{split}_images"
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(f"{name}.npy") as file:
                shape = _header(file, archive.getinfo(f"{name}.npy"))[0]
                size = int(np.prod(shape[1:]))
                for row in range(shape[0]):
                    data = file.read(size)
                    if len(data) < size:
                        raise EOFError(f"it ends in row {row}")
                    if row in wanted:
                        yield row, np.frombuffer(data, dtype=np.uint8).reshape(shape[1:])
                file.read(1)  # reading to the end makes zipfile verify the checksum
        except _DAMAGE as error:
            raise DataError(f"{self.path}: {name} is damaged or cut off ({error}); get a whole copy.") from None

    def _check_names(self) -> None:
        refuse_special(self.path)
        if not self.path.is_file():
            raise DataError(f"The file {self.path} does not exist; correct its path.")
        try:
            with zipfile.ZipFile(self.path) as archive:
                names = {name.removesuffix(".npy") for name in archive.namelist() if hidden_part(name) is None}
        except _DAMAGE as error:
            raise DataError(f"{self.path} is no .npz file ({error}); get it as MedMNIST's owners ship it.") from None
        for name in (f"{split}_{kind}" for split in SPLITS for kind in ("images", "labels")):
            if name not in names:
                raise DataError(
                    f"{self.path} has no array {name!r} (it has {', '.join(sorted(names)) or 'none'}); "
                    "a MedMNIST file holds images and labels of train, val and test."
                )

    def _check_images(self, split: str) -> int:
        where = f"{self.path}: {split}_images"
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(f"{split}_images.npy") as file:
                shape, fortran, dtype = _header(file, archive.getinfo(f"{split}_images.npy"))
        except _DAMAGE as error:
            raise DataError(f"{where} cannot be read ({error}); get a whole copy.") from None
        if dtype != np.uint8 or fortran:
            kind = "in Fortran order" if dtype == np.uint8 else f"of type {dtype}"
            raise DataError(f"{where} is {kind}; save it as uint8 in C order.")
        if len(shape) != 3 and not (len(shape) == 4 and shape[3] == 3):
            raise DataError(f"{where} has the shape {shape}; it must be [n, height, width] or [n, height, width, 3].")
        if 0 in shape:
            raise DataError(f"{where} has the shape {shape}, so there is no pixel in it; get a whole copy.")
        return int(shape[0])

    def _read_labels(self, split: str) -> np.ndarray:
        name = f"{split}_labels"
        where = f"{self.path}: {name}"
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(f"{name}.npy") as file:
                _header(file, archive.getinfo(f"{name}.npy"))  # before NumPy allocates what it names
            with np.load(self.path, allow_pickle=False) as arrays:
                labels = np.asarray(arrays[name])
        except _DAMAGE as error:
            raise DataError(f"{where} cannot be read ({error}); get a whole copy.") from None
        labels = labels[:, None] if labels.ndim == 1 else labels
        words = self.facts.words
        several = words.task == "multi_label"
        width = len(words.classes) if several else 1
        if labels.ndim != 2 or labels.shape[1] != width or labels.dtype.kind not in "iu":
            raise DataError(
                f"{where} has the shape {labels.shape} and the type {labels.dtype}; {self.facts.title} needs integers "
                f"of the shape [n, {width}]. Is the file that of another set?"
            )
        if len(labels) != self.sizes[split]:
            raise DataError(f"{where} has {len(labels)} rows for {self.sizes[split]} images; get a whole copy.")
        most = 1 if several else len(words.classes) - 1
        bad = np.argwhere((labels < 0) | (labels > most))
        if len(bad):
            row, column = (int(index) for index in bad[0])
            raise DataError(
                f"{where}, row {row}: the label {labels[row, column]} is out of range; {self.facts.title} has labels "
                f"from 0 to {most}. Is the file that of another set?"
            )
        return labels


def _header(file: IO[bytes], entry: zipfile.ZipInfo) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Read the header of an array: shape, whether in Fortran order, type.

    Raises:
        ValueError: if the header names more values than the archive holds.
    """
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"its array format {version} is unknown")
    shape, fortran, dtype = _HEADERS[version](file)
    if any(length < 0 for length in shape):
        raise ValueError("its header names a negative length")
    unpacked = min(entry.file_size, _BEST_RATIO * entry.compress_size + 4096)
    if math.prod(shape) * dtype.itemsize > unpacked:
        raise ValueError("its header names more values than it holds")
    return shape, fortran, dtype
