"""What a prediction file was made with, so that a continued run never mixes two models or two sets of questions."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from medtune.aliases import canonical
from medtune.data.writing import file_sha256
from medtune.errors import ConfigError


def weights_identity(path: str | Path, beside: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Sha256 and size of every weight file.

    Args:
        path: A ``.safetensors`` file, or a folder of them.
        beside: Patterns of further files of the folder that decide the answers, such as ``*.json``.

    Raises:
        ConfigError: If there is none.
    """
    path = Path(path)
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise ConfigError(f"checkpoint {path} is neither a .safetensors file nor a folder that holds some")
    files += sorted({file for pattern in beside for file in path.glob(pattern) if file.is_file()})
    return {file.name: {"sha256": file_sha256(file), "bytes": file.stat().st_size} for file in files}


def claim(predictions: Path, identity: Mapping[str, Any]) -> None:
    """Write down what a prediction file is made with, or check that it is the same as before.

    The record stands beside the file, as ``NAME.meta.json``.

    Args:
        predictions: The prediction file; it need not exist yet.
        identity: Plain values that decide what the answers are.

    Raises:
        ConfigError: If the file was made with something else, or nobody knows with what.
    """
    record = predictions.with_suffix(".meta.json")
    if predictions.is_file() and predictions.stat().st_size:
        _compare(predictions, record, json.loads(json.dumps(identity)))
        return
    aside = record.with_name(record.name + ".tmp")
    aside.write_text(json.dumps(identity, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(aside, record)


def _compare(predictions: Path, record: Path, identity: Any) -> None:
    if not record.is_file():
        raise ConfigError(f"{predictions} has no {record.name}, so its model is unknown; choose another output_dir")
    try:
        known = json.loads(record.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{record} is not valid JSON: {error}; remove it together with {predictions}") from error
    differing = list(_differences(canonical(known), canonical(identity)))
    if differing:
        raise ConfigError(
            f"{predictions} was made with other settings ({'; '.join(differing[:3])}); choose another output_dir, "
            "or remove the file to start anew"
        )


def _differences(old: Any, new: Any, where: str = "") -> Iterator[str]:
    """Yield ``key: old -> new`` for every leaf that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(key), new.get(key), f"{where}.{key}" if where else key)
    elif old != new:
        yield f"{where}: {_short(old)} before, {_short(new)} now"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
