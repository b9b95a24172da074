"""Files that grow line by line: a lock for the writer, whole lines, and the end of a file that a kill has torn."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from medtune.errors import DataError


@contextmanager
def explained_writing(path: Path) -> Iterator[None]:
    """Convert an OSError, such as a full disk, to an error with a remedy; lines written before stay.

    Raises:
        DataError: If the block raises an OSError.
    """
    try:
        yield
    except OSError as error:
        raise DataError(
            f"Cannot write {path}: {error.strerror}. Make room and give the same command again; it goes on."
        ) from error


def open_locked(path: Path) -> int:
    """Open a file for appending and lock it; repeat if the file was replaced in the meantime.

    Returns:
        The descriptor. The lock is released when it is closed, or when the process ends.

    Raises:
        DataError: Another run holds the lock.
    """
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise DataError(f"Cannot write {path}: {error.strerror}; choose another output_dir.") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released when the process ends
        except OSError as error:
            os.close(descriptor)
            raise DataError(f"{path} is being written by another run; choose another output_dir.") from error
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
        os.close(descriptor)  # the file was replaced before the lock was taken


def write_line(path: Path, descriptor: int, data: bytes) -> None:
    """Pass a whole line to the operating system before this returns.

    Args:
        path: The file, for the error.
        descriptor: Of the file, opened for appending.
        data: The line with its newline.

    Raises:
        DataError: The line cannot be written.
    """
    rest = memoryview(data)
    with explained_writing(path):
        while rest:
            rest = rest[os.write(descriptor, rest) :]


def cut_torn_tail(path: Path) -> int:
    """Remove the bytes after the last newline, which are an incomplete line; return their number."""
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        keep = end
        while keep > 0:  # search backwards in blocks, because a file may be large
            start = max(0, keep - 65536)
            file.seek(start)
            newline = file.read(keep - start).rfind(b"\n")
            if newline >= 0:
                keep = start + newline + 1
                break
            keep = start
        if keep != end:
            file.truncate(keep)
    return end - keep


class LineLog:
    """A file that one run at a time appends lines to.

    The lock is taken before anything is read or written, and released when the log is closed or the process ends.

    Args:
        path: The file; it is created if it does not exist.

    Raises:
        DataError: Another run holds the lock, or the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = open_locked(path)

    def write(self, line: str) -> None:
        """Append one line; it is passed to the operating system before this returns."""
        write_line(self.path, self._descriptor, line.encode())

    def sync(self) -> None:
        """Wait until all lines are on the disk."""
        with explained_writing(self.path):
            os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file and release its lock."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
