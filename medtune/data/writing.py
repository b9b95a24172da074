"""Atomic writing: a file is either complete or absent."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medtune.data.sample import Sample
from medtune.errors import DataError


@dataclass(frozen=True)
class Content:
    """The content to write to a file, without keeping it in memory.

    Attributes:
        size: number of bytes.
        digest: SHA-256 in hexadecimal.
        blocks: yields the bytes; the same bytes at each call.
    """

    size: int
    digest: str
    blocks: Callable[[], Iterator[bytes]]


def measured(blocks: Callable[[], Iterator[bytes]]) -> Content:
    """Read blocks once to compute their size and digest."""
    size, digest = 0, hashlib.sha256()
    for block in blocks():
        size += len(block)
        digest.update(block)
    return Content(size, digest.hexdigest(), blocks)


def jsonl_lines(samples: Iterable[Sample]) -> Iterator[bytes]:
    """Yield each sample as a line of JSON Lines in UTF-8."""
    for sample in samples:
        yield (json.dumps(sample.to_dict(), ensure_ascii=False) + "\n").encode()


def jsonl_bytes(samples: Iterable[Sample]) -> bytes:
    """Return samples as JSON Lines in UTF-8, the same bytes for the same samples."""
    return b"".join(jsonl_lines(samples))


def json_bytes(value: Any) -> bytes:
    """Return a value as indented JSON in UTF-8."""
    return (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode()


def sha256(data: bytes) -> str:
    """Return the SHA-256 of bytes in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file of any size in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to ``path`` to write to; it replaces ``path`` when the block ends without an error.

    The new file is flushed to disk first and gets the permissions of the umask. A reader of ``path`` sees either the
    complete old file or the complete new one. After an error the old file is unchanged.

    Args:
        path: the file to replace; its folder must exist.

    Raises:
        OSError: if the disk refuses.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        aside.touch()
        mode = aside.stat().st_mode & 0o777
        yield aside
        aside.chmod(mode)  # safetensors creates files that only their owner can read
        flush(aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes | str) -> None:
    """Write a file atomically; text is written in UTF-8.

    Raises:
        OSError: if the disk refuses.
    """
    with replaced(path) as aside:
        aside.write_bytes(data.encode() if isinstance(data, str) else data)


def flush(path: Path) -> None:
    """Wait until a file's content, or a folder's entries, are on the disk.

    Raises:
        OSError: if the disk refuses.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_files(
    folder: Path, files: Mapping[str, bytes | Content], overwrite: bool, free: Iterable[str] = ()
) -> list[str]:
    """Write files into a folder, each atomically, in the given order.

    Files that already hold these bytes are not written again, so that repeating a finished or an interrupted call is
    safe.

    Args:
        folder: created if absent; other files in it stay.
        files: name -> contents; a :class:`Content` is written block by block.
        overwrite: replace files with other contents.
        free: names that are always replaced, such as a manifest that describes the other files.

    Returns:
        The names that were written.

    Raises:
        DataError: if a file with other contents exists and ``overwrite`` is not set; nothing is written then. Also if a
            :class:`Content` yields bytes that do not match its digest; that file is left unchanged.
    """
    contents = {name: _content(data) for name, data in files.items()}
    changed = [name for name, content in contents.items() if not _holds(folder / name, content)]
    in_the_way = [name for name in changed if (folder / name).exists() and name not in set(free)]
    if in_the_way and not overwrite:
        raise DataError(
            f"{folder} already holds a different {', '.join(in_the_way)}; choose another output_dir, or set "
            "overwrite=true to replace these files."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in changed:
            _replace(folder / name, contents[name])
    except OSError as error:
        raise DataError(f"Cannot write into {folder}: {error.strerror}; choose another output_dir.") from None
    return changed


def _content(data: bytes | Content) -> Content:
    return data if isinstance(data, Content) else Content(len(data), sha256(data), lambda: iter([data]))


def _holds(path: Path, content: Content) -> bool:
    return path.is_file() and path.stat().st_size == content.size and file_sha256(path) == content.digest


def _replace(path: Path, content: Content) -> None:
    digest = hashlib.sha256()
    with replaced(path) as aside:
        with aside.open("wb") as file:
            for block in content.blocks():
                digest.update(block)
                file.write(block)
        if digest.hexdigest() != content.digest:
            raise DataError(f"{path.name}: the data it is made of changed while it was written; run it again.")
