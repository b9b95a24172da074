"""What was made of what: contents by hash, and the one comparison of a saved identity with the present one."""

import functools
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medtune.data.writing import file_sha256

_ABSENT = object()
_LONGEST = 60  # characters of a value in a message


@dataclass(frozen=True)
class Difference:
    """A key whose saved value is not the present one.

    Attributes:
        key: the path to it, its parts joined by dots.
        there: the saved value, short.
        here: the present value, short.
    """

    key: str
    there: str
    here: str

    def __str__(self) -> str:
        return f"{self.key}: {self.there} there, {self.here} here"


def differences(
    saved: Mapping[str, Any],
    current: Mapping[str, Any],
    *,
    keys: Collection[str] | None = None,
    null_is_absent: bool = False,
) -> list[Difference]:
    """Compare two identities leaf by leaf.

    Args:
        saved: as read from JSON.
        current: plain values; compared as JSON would give them back, so that a tuple equals a list.
        keys: the top-level keys that are compared; None compares all of both.
        null_is_absent: take a key that is missing for one whose value is null.

    Returns:
        The leaves that differ, in the order of ``saved`` and then of ``current``.
    """
    here = json.loads(json.dumps(dict(current)))
    chosen = [key for key in {**saved, **here} if keys is None or key in keys]
    missing = None if null_is_absent else _ABSENT
    found: list[Difference] = []
    for key in chosen:
        found += _leaves(saved.get(key, missing), here.get(key, missing), key, missing)
    return found


def _leaves(old: Any, new: Any, where: str, missing: Any) -> Iterator[Difference]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            yield from _leaves(old.get(key, missing), new.get(key, missing), f"{where}.{key}", missing)
    elif old is not new and old != new:
        yield Difference(where, short(old), short(new))


def short(value: Any) -> str:
    """A value for a message: of a digest the first digits, of anything long the beginning."""
    if value is _ABSENT:
        return "absent"
    if isinstance(value, str) and len(value) == 64 and not set(value) - set("0123456789abcdef"):
        return f"{value[:12]}..."
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def file_identity(path: str | Path) -> str:
    """SHA-256 of a file's content; read once in a process, and again when its size or time has changed.

    Raises:
        OSError: if it cannot be read.
    """
    path = Path(path).expanduser().resolve()
    stat = path.stat()
    return _hashed(path, stat.st_size, stat.st_mtime_ns, stat.st_ino)


@functools.lru_cache(maxsize=4096)
def _hashed(path: Path, size: int, changed: int, inode: int) -> str:
    return file_sha256(path)


def files_identity(files: Mapping[str, Path]) -> dict[str, str]:
    """Name -> :func:`file_identity` of its file; where the files lie is no part of it.

    Raises:
        OSError: if one cannot be read.
    """
    return {name: file_identity(file) for name, file in sorted(files.items())}


def named_paths(node: Any, where: str = "") -> Iterator[tuple[str, Path]]:
    """Every file and folder that exists and that a component names, however deep, with the place of its key."""
    if isinstance(node, str):
        try:
            path = Path(node).expanduser()
            if node and path.exists():
                yield where, path
        except (OSError, ValueError, RuntimeError):  # a text: too long, of other characters, or of no user
            return
    elif isinstance(node, Mapping | list | tuple):
        for key, value in node.items() if isinstance(node, Mapping) else enumerate(node):
            yield from named_paths(value, f"{where}.{key}" if where else str(key))
