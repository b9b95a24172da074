"""Folders that are replaced as a whole, and a record in each folder of what medtune wrote there.

Nothing that medtune did not write is replaced or removed. A writer first claims the names that it will write into a
folder. The claim is refused if a file that medtune did not write already has one of these names.
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


# -- folders that are replaced as a whole -----------------------------------------------------------------------------


def write_folder(aside: Path, final: Path, write: Callable[[Path], None]) -> None:
    """Fill ``aside`` with ``write``, flush it to disk and move it to ``final``.

    If ``final`` exists, the two folders are exchanged in one atomic step and the old one is removed afterwards, so that
    a complete folder exists even if the process is killed. If the file system cannot exchange folders (NFS, for
    example), the old folder is renamed for a moment, and :func:`finish_swap` restores it after a kill.

    Args:
        aside: a path next to ``final``; leftovers of an earlier, killed call are removed.
        final: the folder to replace.
        write: fills the folder whose path it gets.

    Raises:
        OSError: if writing fails; ``final`` is then unchanged.
    """
    finish_swap(final)
    _remove(aside)
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
        _remove(aside)
    else:
        os.replace(final, _waiting(final))
        os.replace(aside, final)
        finish_swap(final)
    flush(final.parent)


def exchange(first: Path, second: Path) -> bool:
    """Exchange two paths in one atomic step; return False if the system or the file system cannot."""
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
    """Restore or remove the old folder of a swap that was interrupted by a kill."""
    waiting = _waiting(final)
    if waiting.is_dir():
        if final.exists():
            _remove(waiting)
        else:
            os.replace(waiting, final)


def _remove(folder: Path) -> None:
    """Remove a folder; for a link to a folder, remove only the link."""
    if folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)


def _waiting(final: Path) -> Path:
    return final.with_name(f".{final.name}.replaced")


# -- who wrote a folder -----------------------------------------------------------------------------------------------


def refuse_taken(folder: Path, writer: str, names: Iterable[str], ours: Callable[[Path], bool]) -> None:
    """Refuse a folder in which a file that medtune did not write has one of the names. Writes nothing.

    Args:
        folder: the folder; it need not exist.
        writer: name of the writer, e.g. ``train``; each writer has its own list in the record.
        names: files and folders that it writes, replaces or removes; may be patterns. Empty ones never conflict.
        ours: recognises a folder that medtune wrote before records were introduced.

    Raises:
        ConfigError: naming the conflicting file.
    """
    listed = _read(folder).get(writer)
    taken = _taken(folder, [name for name in names if name not in (listed or [])])
    if taken and (listed is not None or not ours(folder)):
        raise ConfigError(
            f"{folder} holds {', '.join(taken)}, which {writer} would replace and did not write; move "
            f"{'it' if len(taken) == 1 else 'them'} away, or choose another folder"
        )


def claim(folder: Path, writer: str, names: Iterable[str], ours: Callable[[Path], bool]) -> None:
    """Call :func:`refuse_taken`, then add the names to the folder's record before anything else is written.

    Other files of the folder do not matter: they are never touched.

    Raises:
        ConfigError: if a name is taken, or the folder cannot be written to; nothing is written in that case.
    """
    names = list(names)
    refuse_taken(folder, writer, names, ours)
    try:
        note(folder, writer, names)
    except OSError as error:
        raise ConfigError(f"cannot write into {folder}: {error.strerror or error}; choose another folder") from error


def note(folder: Path, writer: str, names: Iterable[str]) -> None:
    """Add names to a writer's list in the record.

    Raises:
        OSError: if writing fails.
    """
    record = _read(folder)
    listed = sorted({*record.get(writer, []), *names})
    if listed != record.get(writer):
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / RECORD, json_bytes({"format": _FORMAT, "writes": {**record, writer: listed}}))


def noted(folder: Path, writer: str) -> list[str]:
    """Return the names in a writer's list; none if there is no record."""
    return list(_read(folder).get(writer, []))


def _read(folder: Path) -> Mapping[str, list[str]]:
    path = folder / RECORD
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return {str(writer): [str(name) for name in names] for writer, names in record["writes"].items()}
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
