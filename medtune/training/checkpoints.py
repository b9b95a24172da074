"""Training checkpoints: safetensors and JSON, written to a temporary folder and renamed, verified before reading.

A checkpoint is a folder ``step_00000120`` with ``model.safetensors`` (what may have changed),
``optimizer.safetensors``, ``objective.safetensors``, ``state.json`` and, last, ``manifest.json`` with every file's size
and sha256.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from medtune.aliases import canonical
from medtune.data.folders import write_folder
from medtune.data.identity import differences
from medtune.data.writing import file_sha256
from medtune.errors import CheckpointError

TENSOR_FILES = ("model", "optimizer", "objective")


@dataclass
class TrainingState:
    """Everything that a resumed run needs: tensors by file, and plain values (step, run identity, best value)."""

    model: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    objective: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(folder: Path, state: TrainingState, keep: int) -> Path:
    """Write ``folder/step_N`` whole or not at all, then remove old checkpoints.

    Args:
        folder: The run's checkpoint folder.
        state: What to write; ``values["step"]`` names the checkpoint.
        keep: Number of newest checkpoints to keep.

    Raises:
        CheckpointError: If writing fails; earlier checkpoints stay whole.
    """
    final = folder / f"step_{state.values['step']:08d}"
    aside = folder / f".{final.name}.writing"
    try:
        write_folder(aside, final, lambda path: _write_files(path, state))
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise CheckpointError(
            f"cannot write checkpoint {final}: {error}; free space or set another output_dir, then resume: "
            "earlier checkpoints are whole"
        ) from error
    # A later step's checkpoint is torn: the run goes on from an earlier one. It must not take the place of the new one.
    kept = [path for path in _steps(folder) if path.name <= final.name]
    for old in kept[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def _write_files(folder: Path, state: TrainingState) -> None:
    for name in TENSOR_FILES:
        save_file(getattr(state, name), folder / f"{name}.safetensors")
    (folder / "state.json").write_text(json.dumps(state.values, indent=1, sort_keys=True), encoding="utf-8")
    names = [*(f"{name}.safetensors" for name in TENSOR_FILES), "state.json"]
    manifest = {name: {"bytes": (folder / name).stat().st_size, "sha256": file_sha256(folder / name)} for name in names}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def newest_checkpoint(folder: Path, warn: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that is whole; damaged ones are reported and skipped."""
    for path in _steps(folder):
        problem = torn(path)
        if problem is None:
            return path
        warn(f"checkpoint {path} is torn ({problem}) and is passed over")
    return None


def torn(path: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None."""
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        listed = {name: (entry["bytes"], entry["sha256"]) for name, entry in manifest.items()}
    except (OSError, ValueError, RecursionError) as error:
        return f"manifest.json: {error}"
    except (AttributeError, KeyError, TypeError):
        return "manifest.json is not a list of files with their sizes and checksums"
    absent = {*(f"{name}.safetensors" for name in TENSOR_FILES), "state.json"} - listed.keys()
    if absent:
        return f"manifest.json does not list {min(absent)}"
    for name, (size, sha256) in listed.items():
        file = path / name
        if Path(name).name != name or not file.is_file() or file.stat().st_size != size:
            return f"{name} is missing or has another size"
        if file_sha256(file) != sha256:
            return f"{name} has another sha256"
    return None


def load_checkpoint(path: Path) -> TrainingState:
    """Read a checkpoint that :func:`newest_checkpoint` found whole."""
    try:
        tensors = {name: load_file(path / f"{name}.safetensors") for name in TENSOR_FILES}
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error
    return TrainingState(**tensors, values=load_values(path))


def load_values(path: Path) -> dict[str, Any]:
    """The plain values of a checkpoint, without its tensors."""
    try:
        values = json.loads((path / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(path, error) from error
    if not isinstance(values, dict):
        raise _unreadable(path, ValueError("state.json does not hold a JSON object"))
    return values


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"cannot read checkpoint {path}: {error}; delete the folder to use an earlier one")


def check_identity(
    path: Path, saved: dict[str, Any], current: dict[str, Any], files: Mapping[str, Sequence[str]] | None = None
) -> None:
    """Refuse to continue a run with another model, data, method or global batch; an old name equals its new one.

    Args:
        path: The checkpoint, for the message.
        saved: Its identity. Keys it lacks were not recorded by the version that wrote it, and are not compared.
        current: The identity of this run.
        files: Key -> the files whose contents the key represents.

    Raises:
        CheckpointError: Naming each key that differs, with both values and its files.
    """
    differing = differences(canonical(saved), canonical(current), keys=saved.keys() & current.keys())
    if not differing:
        return
    lines = []
    for found in differing:
        named = (files or {}).get(found.key.partition(".")[0])
        hint = f" (the contents of {', '.join(named)}, or how they are read, have changed)" if named else ""
        lines.append(f"  {found}{hint}")
    raise CheckpointError(
        f"checkpoint {path} belongs to another run:\n"
        + "\n".join(lines)
        + "\nTo start anew, set another output_dir; to go on, put back what was there."
    )


def _steps(folder: Path) -> Iterator[Path]:
    """Checkpoint folders, newest first."""
    yield from sorted((p for p in folder.glob("step_*") if p.is_dir()), reverse=True)
