"""Where images lie: a folder or a plain tar file."""

import functools
import hashlib
import io
import os
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol

import numpy as np

from medtune.data.image_names import folded
from medtune.data.opening import open_regular
from medtune.errors import DataError

_DAMAGE = (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, MemoryError, RecursionError)


class Store(Protocol):
    """The interface of both."""

    def open(self, name: PurePosixPath) -> AbstractContextManager[tuple[BinaryIO, int]]:
        """Return an image's file, and its size in bytes."""
        ...

    def files(self, names: Sequence[PurePosixPath]) -> list[str]:
        """Return the absolute paths of the files that hold these images."""
        ...

    def names(self) -> Iterator[str]:
        """Yield the path of every file, hidden ones too, relative to the root and in a fixed order."""
        ...

    def similar(self, name: PurePosixPath) -> str | None:
        """Return the path of a file whose name differs only in case, Unicode form, suffix or a repeated root."""
        ...


class Folder:
    """Files below a folder; links that lead out of it are refused."""

    def __init__(self, path: Path) -> None:
        self.root = path.resolve()

    def files(self, names: Sequence[PurePosixPath]) -> list[str]:
        """Return the absolute path of each image."""
        return [os.path.join(self.root, name) for name in names]

    @contextmanager
    def open(self, name: PurePosixPath) -> Iterator[tuple[BinaryIO, int]]:
        """Open an image's file."""
        path = Path(os.path.realpath(self.root / name))  # unlike resolve(), realpath does not raise on a loop of links
        if not path.is_relative_to(self.root):
            raise DataError(
                f"the image path {name} is a link that leaves the image root; copy the image into the root."
            )
        try:
            file = open_regular(path)
        except DataError as error:
            raise DataError(f"the image {name} {error}") from None
        with file:
            yield file, os.fstat(file.fileno()).st_size

    def names(self) -> Iterator[str]:
        """Yield the path of every file, folder after folder."""
        for base, folders, names in os.walk(self.root):
            folders.sort()
            for name in sorted(names):
                yield (Path(base) / name).relative_to(self.root).as_posix()

    def similar(self, name: PurePosixPath) -> str | None:
        """Return the path of a file with a similar name."""
        ends = (count for count in range(1, len(name.parts)) if self.root.parts[-count:] == name.parts[:count])
        for parts in (name.parts, *(name.parts[count:] for count in ends)):
            found = self._walked(parts)
            if found is not None:
                return found
        return None

    def _walked(self, parts: Sequence[str]) -> str | None:
        """Follow folded names from the root; of the last one the suffix may differ."""
        found = PurePosixPath()
        for at, part in enumerate(parts):
            names = _listed(str(self.root / found))
            last = names.get(folded(part))
            if last is None and at == len(parts) - 1:
                last = names.get(f"{folded(PurePosixPath(part).stem)}.*")
            if last is None:
                return None
            found /= last
        return found.as_posix() if (self.root / found).is_file() else None


def _listed(folder: str) -> dict[str, str]:
    try:
        return _folded_listing(folder, os.stat(folder).st_mtime_ns)
    except OSError:
        return {}


@functools.lru_cache(maxsize=32)
def _folded_listing(folder: str, changed: int) -> dict[str, str]:
    """Return folded name -> name in a folder, and ``stem.*`` -> name."""
    names = sorted(os.listdir(folder), reverse=True)
    stems = {f"{folded(PurePosixPath(name).stem)}.*": name for name in names}
    return stems | {folded(name): name for name in names}


class Tar:
    """Members of a tar file, found through a sorted table of (hash of the name, offset, size)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            places = ((_name_hash(name), start, size) for name, start, size, _ in _members(path))
            table = np.fromiter(places, dtype=np.dtype((np.uint64, 3)))
        except _DAMAGE as error:
            raise DataError(
                f"The image root {path} is not a plain tar file ({error}); give a folder or an uncompressed .tar."
            ) from None
        self.hashes, self.offsets, self.sizes = table[np.argsort(table[:, 0], kind="stable")].T.copy()

    def files(self, names: Sequence[PurePosixPath]) -> list[str]:
        """Return the tar file, if there are names."""
        return [str(self.path.resolve())] if names else []

    @contextmanager
    def open(self, name: PurePosixPath) -> Iterator[tuple[BinaryIO, int]]:
        """Open a member as a file of its own."""
        key = np.uint64(_name_hash(name))
        at = (
            int(np.searchsorted(self.hashes, key, side="right")) - 1
        )  # of members with the same name, the last one counts
        if at < 0 or self.hashes[at] != key:
            raise FileNotFoundError(name)
        size = int(self.sizes[at])
        with open_regular(self.path) as file:
            yield io.BufferedReader(_Part(file, int(self.offsets[at]), size), 1 << 16), size

    def names(self) -> Iterator[str]:
        """Yield the path of every member, sorted; of several with one name, one."""
        yield from sorted({str(name) for name, _, _, _ in _members(self.path)})

    def similar(self, name: PurePosixPath) -> str | None:
        """Return the path of a member whose name differs only in case or Unicode form."""
        status = self.path.stat()
        hashes, headers = _folded_members(str(self.path), status.st_mtime_ns, status.st_size)
        key = np.uint64(_text_hash(folded(str(name))))
        at = int(np.searchsorted(hashes, key))
        if at == len(hashes) or hashes[at] != key:
            return None
        with open_regular(self.path) as file:
            file.seek(int(headers[at]))
            with tarfile.open(fileobj=file, mode="r:") as archive:
                member = archive.next()
        return None if member is None else str(PurePosixPath(member.name))


class _Part(io.RawIOBase):
    """A part of a file, as a file."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        self._file, self._start, self._size, self._at = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError(f"negative position {base + offset}")
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        wanted = min(len(buffer), max(0, self._size - self._at))
        if not wanted:
            return 0
        self._file.seek(self._start + self._at)
        data = self._file.read(wanted)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


@functools.lru_cache(maxsize=4)
def _folded_members(path: str, changed: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the hash of each member's folded name, sorted, and where its header begins; 16 bytes for each."""
    places = ((_text_hash(folded(str(name))), header) for name, _, _, header in _members(Path(path)))
    table = np.fromiter(places, dtype=np.dtype((np.uint64, 2)))
    hashes, headers = table[np.argsort(table[:, 0], kind="stable")].T.copy()
    return hashes, headers


def _members(path: Path) -> Iterator[tuple[PurePosixPath, int, int, int]]:
    """Yield name, first byte, size and header of each regular file."""
    with open_regular(path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
        whole, reached = os.fstat(file.fileno()).st_size, 0
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # otherwise tarfile keeps an object per member
            if not 0 <= member.size <= whole - member.offset_data or archive.offset <= reached:
                raise tarfile.ReadError("a member says that it is larger than the file, or has a negative size")
            reached = archive.offset  # a negative size would lead back to an earlier member, for ever
            if member.isreg() and not member.issparse():
                yield PurePosixPath(member.name), member.offset_data, member.size, member.offset


def _name_hash(name: PurePosixPath) -> int:
    return _text_hash(str(name))


def _text_hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big")
