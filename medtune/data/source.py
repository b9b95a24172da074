"""Sources, from which samples are read one at a time, with only row positions in memory."""

import functools
import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from medtune.data.images import ImageRoot
from medtune.data.opening import refuse_special
from medtune.data.sample import Sample, is_identifier
from medtune.errors import DataError


@runtime_checkable
class SampleSource(Protocol):
    """The interface of the sources that every builder of :mod:`medtune.datasets` returns.

    Attributes:
        name: short name for tables and messages.
    """

    name: str

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def __getitem__(self, index: int) -> Sample:
        """Return a sample, or raise a DataError that names file and row."""
        ...

    def open_images(self, sample: Sample) -> list[Image.Image]:
        """Return the sample's images, decoded to RGB, or raise a DataError that names file and row."""
        ...

    def image_sizes(self, sample: Sample) -> list[tuple[int, int]]:
        """Return (width, height) of each image without decoding it, with the same errors."""
        ...

    def fingerprint(self) -> str:
        """Return a SHA-256 of the contents that a run depends on."""
        ...


class RecordSource(ABC):
    """Samples of one file, read a row at a time.

    The constructor reads the file once and keeps 36 bytes per row, independent of the rows' content. A row that cannot
    be used (no valid JSON, a duplicate id, an empty report) raises its DataError when it is read, so that a preflight
    can list all such rows at once.

    Args:
        path: the file.
        image_root: folder or ``.tar`` of the images, or an object that reads them; None if no row has images.
        settings: everything else that decides the samples; part of the fingerprint.
    """

    unit = "line"

    def __init__(self, path: str | Path, image_root: str | Path | ImageRoot | None, settings: object = None) -> None:
        self.path = Path(path).expanduser()
        refuse_special(self.path)
        if not self.path.is_file():
            raise DataError(f"The data file {self.path} does not exist; correct its path.")
        self.name = self.path.stem
        self.images = image_root if isinstance(image_root, ImageRoot | None) else ImageRoot(image_root)
        self._settings = settings
        places = ((start, end, number, _id_hash(id)) for start, end, number, id in self.spans())
        rows = np.fromiter(places, dtype=np.dtype((np.uint64, 4)))
        if not len(rows):
            raise DataError(f"{self.path} holds no row; a data file needs at least one sample.")
        self._starts, self._ends, self._numbers, ids = rows.T.copy()
        self._by_id = np.argsort(ids, kind="stable").astype(np.uint32)
        self._sorted_ids = ids[self._by_id]

    @abstractmethod
    def spans(self) -> Iterator[tuple[int, int, int, object]]:
        """Yield (first byte, byte after the last, line or item number, id or None) of each row."""

    @abstractmethod
    def parse(self, raw: bytes, number: int, where: str) -> Sample:
        """Convert a row's bytes to a sample, or raise a DataError that begins with ``where``."""

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._starts)

    def __getitem__(self, index: int) -> Sample:
        """Read one row.

        Raises:
            DataError: if the row is not a sample or repeats the id of an earlier row; names file and row.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} samples, there is no number {index}")
        start, end = int(self._starts[index]), int(self._ends[index])
        with self.path.open("rb") as file:
            file.seek(start)
            raw = file.read(end - start)
        where = self._where(index)
        sample = self.parse(raw, int(self._numbers[index]), where)
        first = self._first_row(sample.id)
        if first is not None and first != index:
            raise DataError(
                f"{where}: the id {sample.id!r} is also that of {self._where(first)}; give each row its own."
            )
        return sample

    def open_images(self, sample: Sample) -> list[Image.Image]:
        """Decode a sample's images; see :class:`SampleSource`."""
        where = self.where(sample)
        return [self._root(where).load(name, where) for name in sample.images]

    def image_sizes(self, sample: Sample) -> list[tuple[int, int]]:
        """Read the headers of a sample's images; see :class:`SampleSource`."""
        where = self.where(sample)
        return [self._root(where).size(name, where) for name in sample.images]

    def image_roots(self) -> list[str]:
        """Return the folder or tar file of the images; see :func:`image_roots`."""
        return [] if self.images is None else [str(self.images.path.resolve())]

    def image_files(self, sample: Sample) -> list[str]:
        """Return the files that hold a sample's images; see :func:`image_files`."""
        return [] if self.images is None else self.images.files(sample.images)

    def where(self, sample: Sample) -> str:
        """Return file, row and id of a sample."""
        row = self._first_row(sample.id)
        return f"{self.path.name} (id {sample.id!r})" if row is None else f"{self._where(row)} (id {sample.id!r})"

    def fingerprint(self) -> str:
        """Return a SHA-256 of the file and the reading options; images are checked when opened, not hashed."""
        return self._fingerprint

    @functools.cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256(json.dumps([type(self).__name__, self._settings]).encode())
        if self.images is not None and self.images.grey_bits is not None:
            digest.update(f"grey_bits {self.images.grey_bits}".encode())
        with self.path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()

    def _root(self, where: str) -> ImageRoot:
        if self.images is None:
            raise DataError(f"{where}: the row names images, but no image_root was given; set it in the config.")
        return self.images

    def _where(self, index: int) -> str:
        return f"{self.path.name}, {self.unit} {int(self._numbers[index])}"

    def _first_row(self, id: str) -> int | None:
        key = np.uint64(_id_hash(id))
        at = int(np.searchsorted(self._sorted_ids, key))
        return int(self._by_id[at]) if at < len(self) and self._sorted_ids[at] == key else None


class JsonlSource(RecordSource):
    """Samples of a JSON Lines file, one :class:`~medtune.data.sample.Sample` per line; blank lines are skipped."""

    def spans(self) -> Iterator[tuple[int, int, int, object]]:
        """Yield the place of each line; see :class:`RecordSource`."""
        position = 0
        with self.path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                if raw.strip():
                    yield position, position + len(raw), number, _json_id(raw)
                position += len(raw)

    def parse(self, raw: bytes, number: int, where: str) -> Sample:
        """Convert a line to a sample."""
        return Sample.from_dict(decode_json(raw, where), where)


def place(source: SampleSource, sample: Sample) -> str:
    """Return the text that names a sample in a message: file, row and id if the source knows them, else name and id."""
    where = getattr(source, "where", None)
    return where(sample) if where is not None else f"{source.name} (id {sample.id!r})"


def image_roots(source: SampleSource) -> list[str] | None:
    """Return the absolute paths of the folders or tar files of a source's images; None if it does not know them.

    The outcome of the check before training is kept only for sources that know them. Such a source also reports by
    :func:`image_files` the files that the outcome of each sample depends on.
    """
    roots = getattr(source, "image_roots", None)
    return roots() if roots is not None else None


def image_files(source: SampleSource, sample: Sample) -> list[str]:
    """Return the absolute paths of the files that hold a sample's images, whether or not they exist.

    All images in a tar file have the path of that tar file. A path that :func:`medtune.data.images.safe_path` refuses
    is left out.
    """
    files = getattr(source, "image_files", None)
    return files(sample) if files is not None else []


def decode_json(raw: bytes, where: str) -> Any:
    """Decode one JSON value.

    Raises:
        DataError: if it is not UTF-8 or not JSON.
    """
    try:
        return json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise DataError(f"{where}: this is not UTF-8 text; save the file as UTF-8.") from None
    except (json.JSONDecodeError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deep"
        raise DataError(f"{where}: this is not valid JSON ({reason}); correct or remove the row.") from None


def json_objects(path: Path) -> Iterator[tuple[int, int]]:
    """Yield the byte range of each object in a JSON file that holds one array, without loading the file.

    Raises:
        DataError: if the file is not an array of objects.
    """
    depth, start = 0, 0
    for at, mark in _structure(path):
        if depth == 0 and mark != b"[":
            raise DataError(f"{path}: this must be a JSON array of objects, beginning with '['.")
        if mark in (b"[", b"{"):
            start = at if depth == 1 else start
            depth += 1
        else:
            depth -= 1
            if depth == 1:
                yield start, at + 1
    if depth:
        raise DataError(f"{path}: the JSON array is cut off; the file is truncated.")


def _structure(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield position and character of each bracket that is not inside a string, reading a block at a time."""
    token = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]|"', re.DOTALL)
    rest, base = b"", 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            data, done = rest + block, len(rest) + len(block)
            for match in token.finditer(data):
                if match[0] == b'"':  # the string continues in the next block
                    done = match.start()
                    break
                if match[0][:1] != b'"':
                    yield base + match.start(), match[0]
            rest, base = data[done:], base + done


def _json_id(raw: bytes) -> object:
    try:
        row = json.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    return row.get("id") if isinstance(row, dict) else None


def _id_hash(id: object) -> int:
    """Return a 64-bit hash of an id; a row without a usable id gets the hash of the empty text, which no id has."""
    text = str(id).encode("utf-8", "surrogatepass") if is_identifier(id) else b""
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
