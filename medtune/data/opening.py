"""Opening of regular files only: a FIFO, a socket or a device with the name of a file would be waited for for ever."""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from medtune.errors import DataError, MedtuneError

_KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISFIFO, "a FIFO (named pipe)"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def special_kind(path: str | Path) -> str | None:
    """Return what a path is if it is neither a file, nor a folder, nor absent: a FIFO, a socket or a device."""
    try:
        return _kind(os.stat(path).st_mode)
    except (OSError, ValueError):
        return None


def refuse_special(path: str | Path, error: type[MedtuneError] = DataError) -> None:
    """Refuse a FIFO, a socket and a device, which are not opened; any other path passes.

    Args:
        path: the path; links are followed.
        error: the type that is raised.

    Raises:
        MedtuneError: of that type, with the path.
    """
    kind = special_kind(path)
    if kind is not None:
        raise error(f"{path} is {kind}, not a file; give a regular file.")


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading, without ever waiting for a writer.

    Raises:
        DataError: for a FIFO, a socket or a device; the message is a phrase that follows the file's name.
        OSError: as :func:`open` raises it, also for a folder.
    """
    kind = special_kind(path)  # before opening, because opening a device can have effects
    if kind is None:
        file = open(path, "rb", opener=_without_waiting)
        kind = _kind(os.fstat(file.fileno()).st_mode)  # it may have been exchanged in between
        if kind is None:
            return file
        file.close()
    raise DataError(f"is {kind}, not a file; replace it by a regular file, or remove the row.")


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _kind(mode: int) -> str | None:
    return next((name for is_kind, name in _KINDS if is_kind(mode)), None)
