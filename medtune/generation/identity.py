"""Records what a prediction file was made with, so that a resumed run cannot mix two models or two question files."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medtune.aliases import canonical
from medtune.data.identity import differences
from medtune.data.writing import file_sha256, write_files
from medtune.errors import ConfigError
from medtune.masking import masked
from medtune.models.weight_files import weight_files


def weights_identity(path: str | Path, beside: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Return the SHA-256 checksum and the size of every weight file.

    Args:
        path: A ``.safetensors`` file, or a folder of such files.
        beside: Patterns of other files of the folder on which the answers depend, such as ``*.json``.

    Raises:
        ConfigError: If there is no such file.
        ModelError: If the path holds something else than the weights of a model; the message says what.
    """
    path = Path(path)
    if not beside:
        weight_files(path)  # for its messages
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise ConfigError(f"checkpoint {path} is neither a .safetensors file nor a folder that holds some")
    files += sorted({file for pattern in beside for file in path.glob(pattern) if file.is_file()})
    return {file.name: {"sha256": file_sha256(file), "bytes": file.stat().st_size} for file in files}


def claim(predictions: Path, identity: Mapping[str, Any], parts: Sequence[Path] = ()) -> None:
    """Write what a prediction file is made with, or check that it equals the existing record.

    The record is the file ``NAME.meta.json`` in the same folder, with credentials masked. While the prediction file
    holds answers, the record is compared and never replaced. The caller must hold the lock of the file and of its parts
    (:class:`medtune.evaluation.prediction.PredictionLog`), so that no other run can add answers at the same time.

    Args:
        predictions: The prediction file; it need not exist yet.
        identity: Plain values on which the answers depend.
        parts: Partial prediction files that other processes of the run wrote.

    Raises:
        ConfigError: If the file was made with other settings, or if it holds answers but has no record.
    """
    record = predictions.with_suffix(".meta.json")
    wanted = json.loads(json.dumps(masked(identity)))
    if any(path.is_file() and path.stat().st_size for path in (predictions, *parts)):
        known = _known(predictions, record)
        _compare(predictions, masked(known), wanted)
        if known == masked(known):
            return
    content = (json.dumps(wanted, indent=2, sort_keys=True) + "\n").encode()
    write_files(record.parent, {record.name: content}, overwrite=True)


def _known(predictions: Path, record: Path) -> Any:
    if not record.is_file():
        raise ConfigError(f"{predictions} has no {record.name}, so its model is unknown; choose another output_dir")
    try:
        return json.loads(record.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{record} is not valid JSON: {error}; remove it together with {predictions}") from error


def _compare(predictions: Path, known: Any, identity: Any) -> None:
    all_differences = differences(canonical(known), canonical(identity), null_is_absent=True)
    differing = [
        f"{difference.key}: {difference.there} before, {difference.here} now" for difference in all_differences
    ]
    if differing:
        raise ConfigError(
            f"{predictions} was made with other settings ({'; '.join(differing[:3])}); choose another output_dir, "
            "or remove the file to start anew"
        )
