"""Folders that are written whole, and a record in each of what medtune wrote there.

Nothing that medtune did not write is replaced or removed: who writes into a folder claims the names that it will write,
and is refused where one of them is taken by somebody else's file.
"""

import ctypes
import errno
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path

from medtune.data.writing import flush, json_bytes, write_whole
from medtune.errors import ConfigError

RECORD = ".medtune.json"
_FORMAT = 1
_EXCHANGE, _HERE = 2, -100  # RENAME_EXCHANGE and AT_FDCWD of renameat2(2)


# -- folders that are there whole -------------------------------------------------------------------------------------


def write_folder(aside: Path, final: Path, write: Callable[[Path], None]) -> None:
    """Fill ``aside`` by ``write``, flush it to disk and put it in the place of ``final``.

    Where ``final`` exists the two change places in one step, and the old one is removed afterwards, so that one of
    them is there whenever the process is killed. Where the file system cannot do that (NFS, for one), the old one
    waits beside it for a moment, and :func:`finish_swap` puts it back after a kill.

    Args:
        aside: a name beside ``final``; what an earlier, killed call left there is removed.
        final: the folder.
        write: fills the folder that it is given.

    Raises:
        OSError: if the disk refuses; ``final`` is then as it was.
    """
    finish_swap(final)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    write(aside)
    readable = aside.stat().st_mode & 0o666  # as the umask has it; safetensors makes files for the owner alone
    for path in sorted(aside.rglob("*")):
        if path.is_file():
            path.chmod(readable)
        flush(path)
    flush(aside)
    if not final.exists():
        os.replace(aside, final)
    elif exchange(aside, final):
        shutil.rmtree(aside)
    else:
        os.replace(final, _waiting(final))
        os.replace(aside, final)
        finish_swap(final)
    flush(final.parent)


def exchange(first: Path, second: Path) -> bool:
    """Let two paths change places in one step; False where the system or the file system cannot."""
    swap = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if swap is None:
        return False
    if swap(_HERE, os.fsencode(first), _HERE, os.fsencode(second), _EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM):
        return False
    raise OSError(code, os.strerror(code), str(second))


def finish_swap(final: Path) -> None:
    """Put back, or remove, the old folder of a swap that a kill cut in two."""
    waiting = _waiting(final)
    if waiting.is_dir():
        if final.exists():
            shutil.rmtree(waiting)
        else:
            os.replace(waiting, final)


def _waiting(final: Path) -> Path:
    return final.with_name(f".{final.name}.replaced")


# -- whose a folder is ------------------------------------------------------------------------------------------------


def refuse_taken(folder: Path, writer: str, names: Iterable[str], ours: Callable[[Path], bool]) -> None:
    """Refuse to write where a name is taken by a file of somebody else's. Writes nothing.

    Args:
        folder: need not exist.
        writer: who writes, e.g. ``train``; each has its own list in the record.
        names: files and folders that it writes, replaces or removes; may be patterns. Empty ones are no matter.
        ours: recognises a folder that was written before there was a record.

    Raises:
        ConfigError: naming what is in the way.
    """
    listed = _read(folder).get(writer)
    taken = _taken(folder, [name for name in names if name not in (listed or [])])
    if taken and (listed is not None or not ours(folder)):
        raise ConfigError(
            f"{folder} holds {', '.join(taken)}, which {writer} would replace and did not write; move "
            f"{'it' if len(taken) == 1 else 'them'} away, or choose another folder"
        )


def claim(folder: Path, writer: str, names: Iterable[str], ours: Callable[[Path], bool]) -> None:
    """:func:`refuse_taken`, then take note of the names in the folder's record before anything else is written.

    Other files of the folder are no matter: they are never touched.

    Raises:
        ConfigError: if a name is taken, or the folder cannot be written to; nothing was written then.
    """
    names = list(names)
    refuse_taken(folder, writer, names, ours)
    try:
        note(folder, writer, names)
    except OSError as error:
        raise ConfigError(f"cannot write into {folder}: {error.strerror or error}; choose another folder") from error


def note(folder: Path, writer: str, names: Iterable[str]) -> None:
    """Add names to those that a writer's record lists.

    Raises:
        OSError: if the disk refuses.
    """
    record = _read(folder)
    listed = sorted({*record.get(writer, []), *names})
    if listed != record.get(writer):
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / RECORD, json_bytes({"format": _FORMAT, "writes": {**record, writer: listed}}))


def noted(folder: Path, writer: str) -> list[str]:
    """The names that a writer's record lists; none where there is no record."""
    return list(_read(folder).get(writer, []))


def _read(folder: Path) -> Mapping[str, list[str]]:
    path = folder / RECORD
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {str(writer): [str(name) for name in names] for writer, names in found["writes"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); choose another folder") from error


def _taken(folder: Path, names: list[str]) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(
        path.name for path in folder.iterdir() if any(fnmatch(path.name, name) for name in names) and _full(path)
    )


def _full(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.stat().st_size > 0
