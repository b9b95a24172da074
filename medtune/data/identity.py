"""Identities: hashes of file contents, and the comparison of a saved identity with the current one."""

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
    """A key whose saved value differs from the current one.

    Attributes:
        key: path of the key, its parts joined by dots.
        there: the saved value, shortened.
        here: the current value, shortened.
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
        current: plain values; compared after conversion to JSON, so that a tuple equals a list.
        keys: the top-level keys that are compared; None compares all keys of both.
        null_is_absent: treat a missing key as a key whose value is null.

    Returns:
        The leaves that differ, in the order of ``saved`` and then of ``current``.
    """
    here = json.loads(json.dumps(dict(current)))
    chosen = [key for key in {**saved, **here} if keys is None or key in keys]
    missing = None if null_is_absent else _ABSENT
    differing: list[Difference] = []
    for key in chosen:
        differing += _leaves(saved.get(key, missing), here.get(key, missing), key, missing)
    return differing


def _leaves(old: Any, new: Any, where: str, missing: Any) -> Iterator[Difference]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            yield from _leaves(old.get(key, missing), new.get(key, missing), f"{where}.{key}", missing)
    elif old is not new and old != new:
        yield Difference(where, short(old), short(new))


def short(value: Any) -> str:
    """Shorten a value for a message: the first digits of a digest, the beginning of any other long value."""
    if value is _ABSENT:
        return "absent"
    if isinstance(value, str) and len(value) == 64 and not set(value) - set("0123456789abcdef"):
        return f"{value[:12]}..."
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def file_identity(path: str | Path) -> str:
    """Return the SHA-256 of a file's content; read once per process, and again when its size or time has changed.

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
    """Return name -> :func:`file_identity` of its file; the paths of the files are not part of it.

    Raises:
        OSError: if a file cannot be read.
    """
    return {name: file_identity(file) for name, file in sorted(files.items())}


def named_paths(node: Any, where: str = "") -> Iterator[tuple[str, Path]]:
    """Yield every existing file and folder that a component names at any depth, with the path of its key."""
    if isinstance(node, str):
        try:
            path = Path(node).expanduser()
            if node and path.exists():
                yield where, path
        except (
            OSError,
            ValueError,
            RuntimeError,
        ):  # a text that cannot be a path: too long, invalid characters, or ~ with an unknown user
            return
    elif isinstance(node, Mapping | list | tuple):
        for key, value in node.items() if isinstance(node, Mapping) else enumerate(node):
            yield from named_paths(value, f"{where}.{key}" if where else str(key))
