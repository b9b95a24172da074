"""Files that are either whole or not there."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from medtune.data.sample import Sample
from medtune.errors import DataError


def jsonl_bytes(samples: Iterable[Sample]) -> bytes:
    """Return samples as JSON Lines in UTF-8, the same bytes for the same samples."""
    return "".join(json.dumps(sample.to_dict(), ensure_ascii=False) + "\n" for sample in samples).encode()


def json_bytes(value: Any) -> bytes:
    """Return a value as indented JSON in UTF-8."""
    return (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode()


def sha256(data: bytes) -> str:
    """Return the SHA-256 of some bytes in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def write_files(folder: Path, files: dict[str, bytes], overwrite: bool, free: Iterable[str] = ()) -> list[str]:
    """Write files into a folder, each one whole or not at all, in the order given.

    Files that already hold these bytes are left alone, so that repeating a finished or an interrupted call is safe.

    Args:
        folder: made if absent; what else lies there stays.
        files: name -> contents.
        overwrite: replace files of other contents.
        free: names that are replaced in any case, such as a manifest that describes the others.

    Returns:
        The names that were written.

    Raises:
        DataError: if a file of other contents is in the way and ``overwrite`` is not set; nothing is written then.
    """
    changed = [name for name, data in files.items() if not _holds(folder / name, data)]
    in_the_way = [name for name in changed if (folder / name).exists() and name not in set(free)]
    if in_the_way and not overwrite:
        raise DataError(
            f"{folder} already holds a different {', '.join(in_the_way)}; choose another output_dir, or set "
            "overwrite=true to replace these files."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in changed:
            _replace(folder / name, files[name])
    except OSError as error:
        raise DataError(f"Cannot write into {folder}: {error.strerror}; choose another output_dir.") from None
    return changed


def _holds(path: Path, data: bytes) -> bool:
    return path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data


def _replace(path: Path, data: bytes) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
