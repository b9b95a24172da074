"""Files that grow line by line: a lock for the writer, whole lines, and the end of a file that a kill has torn."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
