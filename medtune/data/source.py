"""Sources, from which samples are read one at a time, with only row positions in memory."""

import functools
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal, Protocol, get_args, runtime_checkable

import numpy as np
from PIL import Image

from medtune.data.images import ImageRoot
from medtune.data.json_text import decode_json, json_objects
from medtune.data.opening import refuse_special
from medtune.data.rows import sample_of
from medtune.data.sample import Sample, is_identifier, printable
from medtune.errors import ConfigError, DataError

RepeatedIds = Literal["refuse", "number"]
"""What happens to a row whose id an earlier row has: an error, or its number is added to its id (``id:7``)."""


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
        repeated_ids: what happens to a row whose id an earlier row has. A row that repeats an earlier one in every byte
            is refused in both cases.
    """

    unit = "line"

    def __init__(
        self,
        path: str | Path,
        image_root: str | Path | ImageRoot | None,
        settings: object = None,
        repeated_ids: RepeatedIds = "refuse",
    ) -> None:
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
        self._numbered = repeated_ids == "number"
        self._sort(ids)
        if self._numbered:
            for index in self._by_id[1:][self._sorted_ids[1:] == self._sorted_ids[:-1]]:
                ids[index] = _id_hash(self._with_number(self._raw_id(int(index)), int(index)))
            self._sort(ids)

    def _sort(self, ids: np.ndarray) -> None:
        self._by_id = np.argsort(ids, kind="stable").astype(np.uint32)
        self._sorted_ids = ids[self._by_id]

    def _raw_id(self, index: int) -> object:
        """Return the id in a row of the file; None if the row cannot be read."""
        try:
            return self.parse(self._read(index), int(self._numbers[index]), "").id
        except DataError:
            return None

    def _with_number(self, id: object, index: int) -> str | None:
        return None if id is None else f"{id}:{int(self._numbers[index])}"

    def _read(self, index: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(int(self._starts[index]))
            return file.read(int(self._ends[index]) - int(self._starts[index]))

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
        raw, where = self._read(index), self._where(index)
        sample = self.parse(raw, int(self._numbers[index]), where)
        first = self._first_row(sample.id)
        if first is None or first == index:
            return sample
        if self._numbered and raw.strip() == self._read(first).strip():
            raise DataError(f"{where}: the row repeats {self._where(first)} (id {sample.id!r}); remove one of them.")
        id = self._with_number(sample.id, index)
        if not self._numbered or id is None or self._first_row(id) != index:
            raise DataError(
                f"{where}: the id {sample.id!r} is also that of {self._where(first)}; give each row its own."
            )
        return replace(sample, id=id)

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
    """Samples of a JSON file: one row per line (JSON Lines), or all rows in one array.

    The file itself shows which of the two it is. A row is in any of the layouts of
    :func:`medtune.data.rows.sample_of`; one without an id gets ``<file>:<number>``. Blank lines are skipped.

    Args:
        path: the file.
        image_root: folder or ``.tar`` of the images, or an object that reads them; None if no row has images.
        repeated_ids: see :class:`RecordSource`.
        ignore_keys: names of keys that are not read, although they could hold text or images.
    """

    def __init__(
        self,
        path: str | Path,
        image_root: str | Path | ImageRoot | None,
        repeated_ids: RepeatedIds = "refuse",
        ignore_keys: Collection[str] = (),
    ) -> None:
        if repeated_ids not in get_args(RepeatedIds):
            raise ConfigError(f"repeated_ids: {repeated_ids!r} is unknown; use refuse or number.")
        self.ignore_keys = frozenset(ignore_keys)
        self._is_array = _begins_with_bracket(Path(path).expanduser())
        self.unit = "item" if self._is_array else "line"
        usual = repeated_ids == self._usual and not ignore_keys
        super().__init__(path, image_root, None if usual else [repeated_ids, sorted(ignore_keys)], repeated_ids)

    _usual: RepeatedIds = "refuse"

    def spans(self) -> Iterator[tuple[int, int, int, object]]:
        """Yield the place of each row; see :class:`RecordSource`."""
        if not self._is_array:
            position = 0
            with self.path.open("rb") as file:
                for number, raw in enumerate(file, start=1):
                    if raw.strip():
                        yield position, position + len(raw), number, self._id(raw, number)
                    position += len(raw)
            return
        with self.path.open("rb") as file:
            for number, (start, end) in enumerate(json_objects(self.path), start=1):
                file.seek(start)
                yield start, end, number, self._id(file.read(end - start), number)

    def parse(self, raw: bytes, number: int, where: str) -> Sample:
        """Convert a row to a sample."""
        return sample_of(decode_json(raw, where), where, self._default_id(number), self.ignore_keys)

    def _id(self, raw: bytes, number: int) -> object:
        try:
            row = decode_json(raw, "")
        except DataError:
            return None
        id = row.get("id") if isinstance(row, dict) and "id" not in self.ignore_keys else None
        return self._default_id(number) if id is None else id

    def _default_id(self, number: int) -> str:
        return f"{self.path.stem}:{number}"


def _begins_with_bracket(path: Path) -> bool:
    """Return whether the first character of a file is ``[``; False for a file that is absent."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        while block := file.read(4096):
            if begin := block.removeprefix(b"\xef\xbb\xbf").lstrip():
                return begin[:1] == b"["
    return False


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


def _id_hash(id: object) -> int:
    """Return a 64-bit hash of an id; a row without a usable id gets the hash of the empty text, which no id has."""
    text = printable(str(id)).encode("utf-8", "surrogatepass") if is_identifier(id) else b""
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
