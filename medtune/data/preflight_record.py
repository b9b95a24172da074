"""The outcome of the check of a data set, kept on disk, so that the next start only checks which files changed."""

import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from medtune.data.writing import write_files
from medtune.errors import DataError

KEPT_RECORDS = 64
SUFFIX = ".check"
_ABSENT = (-1, -1)
_CHANGED = (-2, -2)  # no file has this stamp
_CHUNK = 2048
_SLOW_STAT = 50e-6  # seconds; a local disk answers in 3e-6, a network file system in 1e-4 to 1e-2
_THREADS = 32


@dataclass(frozen=True)
class Table:
    """The outcome of checking every row of a source.

    Attributes:
        numbers: measured values of each row, [rows, columns]; all 0 in a row with a problem.
        problems: row -> (id, reason) of the rows that cannot be used.
        counts: number of image files that the outcome of each row depends on, [rows].
        files: these files, row after row, as indices into ``stamps``.
        stamps: size in bytes and time of the last change in ns of each file, [files, 2]; -1 if it is absent.
        names: absolute path of each file.
    """

    numbers: np.ndarray
    problems: dict[int, tuple[str, str]]
    counts: np.ndarray
    files: np.ndarray
    stamps: np.ndarray
    names: list[bytes]

    @staticmethod
    def of(
        numbers: np.ndarray,
        problems: dict[int, tuple[str, str]],
        counts: np.ndarray,
        names: Sequence[bytes],
        stamps: np.ndarray,
    ) -> "Table":
        """Make a table that contains each file once.

        Args:
            numbers: as above.
            problems: as above.
            counts: as above.
            names: the files, row after row.
            stamps: stamps of ``names``, [len(names), 2].
        """
        hashes = np.fromiter(map(_hash, names), dtype=np.uint64, count=len(names))
        _, first, files = np.unique(hashes, return_index=True, return_inverse=True)
        known = stamps[first]
        differing = (stamps != known[files]).any(axis=1)
        known[files[differing]] = _CHANGED  # the file changed during the check
        return Table(numbers, problems, counts, files.astype(np.int32), known, [names[at] for at in first.tolist()])

    def rows_of(self, changed: np.ndarray) -> np.ndarray:
        """Return the rows that depend on changed files.

        Args:
            changed: whether each file has changed, [files].
        """
        owners = np.repeat(np.arange(len(self.counts)), self.counts)
        rows: np.ndarray = np.unique(owners[changed[self.files]])
        return rows

    def updated(self, rows: np.ndarray, found: "Table", stamps: np.ndarray) -> "Table":
        """Return the table with the new outcome of some rows.

        Args:
            rows: the rows that were checked again.
            found: their new outcome, in that order.
            stamps: stamps of all files, taken before the rows were checked.
        """
        numbers = self.numbers.copy()
        numbers[rows] = found.numbers
        again = set(rows.tolist())
        problems = {row: problem for row, problem in self.problems.items() if row not in again}
        problems |= {int(rows[at]): problem for at, problem in found.problems.items()}
        return replace(self, numbers=numbers, problems=dict(sorted(problems.items())), stamps=stamps)


def _hash(name: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big")


def file_stamp(name: bytes) -> tuple[int, int]:
    """Return a file's size in bytes and the time of its last change in ns; -1 and -1 if it does not exist."""
    try:
        status = os.stat(name)
    except (OSError, ValueError):
        return _ABSENT
    return status.st_size, status.st_mtime_ns


def file_stamps(names: Sequence[bytes]) -> np.ndarray:
    """Return the stamps of many files, [files, 2]; uses threads if the file system is slow."""
    chunks = [names[at : at + _CHUNK] for at in range(0, len(names), _CHUNK)]
    if not chunks:
        return np.empty((0, 2), dtype=np.int64)
    began = time.perf_counter()
    stamps = [_stamps(chunks[0])]
    slow = (time.perf_counter() - began) / len(chunks[0]) > _SLOW_STAT
    if slow and len(chunks) > 1:
        with ThreadPoolExecutor(_THREADS) as pool:
            stamps += pool.map(_stamps, chunks[1:])
    else:
        stamps += map(_stamps, chunks[1:])
    return np.concatenate(stamps)


def _stamps(names: Sequence[bytes]) -> np.ndarray:
    return np.fromiter(map(file_stamp, names), dtype=np.dtype((np.int64, 2)), count=len(names))


@dataclass(frozen=True)
class Record:
    """The file that keeps the outcome of one check, named by a hash of everything that decides it except image files.

    Attributes:
        folder: folder of such files.
        name: name of the data, for people.
        made_of: everything that decides the outcome except the image files, as JSON.
        say: function that prints a line.
    """

    folder: Path
    name: str
    made_of: dict[str, Any]
    say: Callable[[str], None] = print

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / f"{_plain(self.name)}-{hashlib.sha256(self._key.encode()).hexdigest()[:32]}{SUFFIX}"

    @property
    def _key(self) -> str:
        return json.dumps(self.made_of, sort_keys=True, default=str)

    def load(self, rows: int) -> Table | None:
        """Return the saved table, or None if there is none. A file that cannot be used is reported by a line.

        Args:
            rows: number of rows of the source.
        """
        try:
            table = _read(self.path.read_bytes(), self._key, rows)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            self.say(f"check {self.name}: what {self.path} remembers cannot be used ({error}); reading all rows")
            return None
        with suppress(OSError):
            os.utime(self.path)  # the most recently used records are kept
        return table

    def save(self, table: Table) -> None:
        """Save the outcome atomically; a folder that cannot be written to is reported by a line."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_files(self.folder, {self.path.name: _written(table, self._key)}, overwrite=True)
            self._clear()
        except (OSError, DataError) as error:
            self.say(f"check {self.name}: the outcome cannot be kept in {self.folder} ({error})")

    def _clear(self) -> None:
        """Remove the least recently used records."""
        age = {}
        for path in self.folder.glob(f"*{SUFFIX}"):
            with suppress(FileNotFoundError):
                age[path] = path.stat().st_mtime
        for path in sorted(age, key=age.__getitem__, reverse=True)[KEPT_RECORDS:]:
            path.unlink(missing_ok=True)


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name)[:40]


def _written(table: Table, key: str) -> bytes:
    prefix = os.path.commonprefix(table.names) if table.names else b""
    blob = b"\0".join(name[len(prefix) :] for name in table.names)
    header = {
        "made_of": key,
        "problems": [[row, *problem] for row, problem in table.problems.items()],
        "prefix": os.fsdecode(prefix),
    }
    arrays: dict[str, Any] = {
        "header": np.frombuffer(json.dumps(header).encode(), dtype=np.uint8),
        "names": np.frombuffer(blob, dtype=np.uint8),
        "numbers": table.numbers.astype(np.int32),
        "counts": table.counts.astype(np.int32),
        "files": table.files,
        "stamps": table.stamps,
    }
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    whole = buffer.getvalue()
    return hashlib.sha256(whole).digest() + whole


def _read(raw: bytes, key: str, rows: int) -> Table:
    """Read a table from a file's bytes: a SHA-256 and an npz file.

    Raises:
        ValueError: if the bytes are damaged, belong to other data, or have another number of rows.
    """
    digest, whole = raw[:32], memoryview(raw)[32:]
    if hashlib.sha256(whole).digest() != digest:
        raise ValueError("it is torn or damaged")
    with np.load(io.BytesIO(whole), allow_pickle=False) as saved:
        arrays = {name: saved[name] for name in saved.files}
    header = json.loads(arrays["header"].tobytes())
    if header["made_of"] != key:
        raise ValueError("it is of other data or settings")
    prefix = os.fsencode(header["prefix"])
    stamps, counts, files = arrays["stamps"], arrays["counts"], arrays["files"]
    names = [prefix + name for name in arrays["names"].tobytes().split(b"\0")] if len(stamps) else []
    problems = {int(row): (str(id), str(reason)) for row, id, reason in header["problems"]}
    sizes_fit = len(names) == len(stamps) and len(arrays["numbers"]) == len(counts) == rows
    if not sizes_fit or int(counts.sum()) != len(files):
        raise ValueError("its parts do not fit together")
    return Table(arrays["numbers"], problems, counts, files, stamps, names)
