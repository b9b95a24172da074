"""The identity of base weights, computed in a moment for files of any size."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from medtune.data.opening import refuse_special
from medtune.errors import ModelError
from medtune.models.weight_files import weight_files


def base_fingerprint(path: str | None) -> str:
    """Identity of the base weights: each file's name, size and header, and the first values of every tensor.

    Reading all of 22 GB would take minutes at every start. The first values are enough to detect other weights, because
    training changes every value of a tensor that it trains.

    Raises:
        ModelError: If there are no weights, or a file is not a safetensors file.
    """
    if path is None:
        return "random"
    weight_files(path)  # for its messages: what the path holds instead of weights
    root = Path(path)
    files = sorted(root.glob("*.safetensors")) if root.is_dir() else [root]
    digest = hashlib.sha256()
    for file in files:
        refuse_special(file, ModelError)
        digest.update(f"{file.name}|{file.stat().st_size}|".encode())
        with file.open("rb") as handle:
            try:
                for block in _first_values(handle, file.stat().st_size):
                    digest.update(block)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
                raise ModelError(f"{file} is not a whole safetensors file; copy it again") from error
    return digest.hexdigest()


def _first_values(handle: BinaryIO, size: int) -> Iterator[bytes]:
    """The header of a safetensors file, then the first 4 KiB of each tensor."""
    head = handle.read(8)
    if int.from_bytes(head, "little") > size:
        raise ValueError("the header is longer than the file")
    header = handle.read(int.from_bytes(head, "little"))
    yield head + header
    entries = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
    for begin, end in sorted(entry["data_offsets"] for entry in entries.values()):
        if not 0 <= begin <= end:
            raise ValueError("a tensor ends before it begins")
        handle.seek(8 + len(header) + begin)
        yield handle.read(min(end - begin, 4096))
