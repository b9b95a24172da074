"""Finds the safetensors files of a model, and says what a path without such files holds instead."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from medtune.data.opening import refuse_special
from medtune.errors import ModelError

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
_PICKLED = ("*.bin", "*.pth", "*.pt", "*.ckpt")
_LFS = b"version https://git-lfs"
# Class in config.json -> converted weights of the same model in safetensors.
_CONVERTED = {
    "LlavaLlamaForCausalLM": "take the converted weights, llava-hf/llava-1.5-7b-hf or llava-hf/llava-1.5-13b-hf",
}


def weight_files(path: str | Path) -> list[Path]:
    """The safetensors files of a base model: the file itself, or a folder's shards.

    Args:
        path: a ``.safetensors`` file, or a folder with some. An index in the folder decides which files count.

    Raises:
        ModelError: if there is nothing to read. The message says what the path holds: a run, a training checkpoint, an
            adapter, pickled weights, an incomplete or a malformed index.
    """
    path = Path(path)
    refuse_special(path, ModelError)
    if not path.exists():
        raise ModelError(f"no weights at {path}: download the model first, or correct the path")
    _refuse_step(path if path.is_dir() else path.parent)
    if path.is_file():
        if path.suffix != ".safetensors":
            raise ModelError(f"{path} is not a .safetensors file; other formats can execute code and are not read")
        return [path]
    if (path / "adapter_config.json").is_file():
        raise ModelError(
            f"{path} holds a PEFT adapter, not a model; set checkpoint to its base weights and adapter={path}"
        )
    index = path / INDEX_NAME
    if index.is_file():
        return [path / name for name in _shards(index)]
    files = sorted(file for file in path.glob("*.safetensors") if not file.is_dir())
    if not files:
        raise ModelError(_what_else(path))
    return files


def _shards(index: Path) -> list[str]:
    """Names of the files that an index lists, each checked to be in its folder."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{index} has no weight_map of tensors to files; download it again")
    names = set(weight_map.values()) if all(isinstance(name, str) for name in weight_map.values()) else {None}
    for name in sorted(names, key=str):
        if name is None or not name.endswith(".safetensors"):
            raise ModelError(f"{index}: its weight_map must name .safetensors files; download it again")
        if Path(name).name != name or not _is_file(index.parent / name):
            raise ModelError(f"{index} names the shard {name!r}, which is not in {index.parent}; finish the download")
    return sorted(str(name) for name in names)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (ValueError, OSError):  # a NUL in the name, or a name that is too long
        return False


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object of a downloaded file.

    Raises:
        ModelError: if it cannot be read or is not a JSON object.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # not UTF-8 is a ValueError too
        raise ModelError(f"{file} is not JSON ({_short(error)}); download it again") from error
    if not isinstance(content, dict):
        raise ModelError(f"{file} does not hold a JSON object; download it again")
    return content


def read_tensors(files: list[Path], take: Callable[[Any, str], Tensor] | None = None) -> dict[str, Tensor]:
    """Every tensor of several files by its name.

    Args:
        files: safetensors files of one model.
        take: ``(reader, name) -> tensor``; the default maps the tensor from disk.

    Raises:
        ModelError: if a file is damaged, a tensor is not of floating point, or two files hold a tensor of one name.
    """
    found: dict[str, Tensor] = {}
    owner: dict[str, Path] = {}
    for file in files:
        for name, tensor in _read(file, take or (lambda reader, name: reader.get_tensor(name))):
            if name in owner:
                raise ModelError(f"{owner[name]} and {file.name} both hold {name}; remove the file that is not needed")
            if tensor.dtype.itemsize < 2 or not tensor.is_floating_point():
                tensor = _plain(tensor, name, file)
            found[name], owner[name] = tensor, file
    return found


def _plain(tensor: Tensor, name: str, file: Path) -> Tensor:
    """Positions and similar tables are whole numbers; weights in whole numbers or 8 bits are quantised."""
    if name.endswith((".weight", ".bias")):
        kind = str(tensor.dtype).removeprefix("torch.")
        raise ModelError(
            f"{file}: {name} is stored as {kind}, so these weights are quantised; take the unquantised weights "
            "(quantize_base makes them 4-bit for training)"
        )
    return tensor


def _read(file: Path, take: Callable[[Any, str], Tensor]) -> Iterator[tuple[str, Tensor]]:
    refuse_special(file, ModelError)
    try:
        with safe_open(file, framework="pt", device="cpu") as reader:
            for name in reader.keys():
                yield name, take(reader, name)
    except ModelError:
        raise
    except Exception as error:  # the library raises its own error, and TypeError or ValueError for unknown types
        raise ModelError(f"{file} cannot be read ({_short(error)}); {_again(file)}") from error


def _again(file: Path) -> str:
    try:
        with file.open("rb") as handle:
            pointer = handle.read(len(_LFS)) == _LFS
    except OSError:
        pointer = False
    return "it is a Git LFS pointer, not the weights: run git lfs pull" if pointer else "download it again"


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _refuse_step(folder: Path) -> None:
    if (folder / "state.json").is_file() and (folder / "manifest.json").is_file():
        run = folder.parent.parent
        ready = [run / name for name in ("weights", "best") if any((run / name).glob("*.safetensors"))]
        where = f"take {ready[0]}, or write the weights of this step" if ready else "write its weights"
        raise ModelError(
            f"{folder} is a training checkpoint, which holds only what was trained; {where}: medtune export {folder} "
            "--to hf --out FOLDER"
        )


def _what_else(folder: Path) -> str:
    ready = [folder / name for name in ("weights", "best") if any((folder / name).glob("*.safetensors"))]
    if ready:
        return f"{folder} holds no safetensors; it is the folder of a run, whose weights are in {ready[0]}: name that"
    if any(folder.glob("checkpoints/step_*")):
        return (
            f"{folder} holds no safetensors; it is the folder of a run that has not written its weights yet: let it "
            f"finish, or write them with medtune export {folder} --to hf --out FOLDER"
        )
    pickled = any(file for kind in _PICKLED for file in folder.glob(kind))
    if not pickled:
        gguf = " (GGUF files are not read)" if any(folder.glob("*.gguf")) else ""
        return f"{folder} holds no safetensors{gguf}; download the model first, or correct the path"
    remedy = _converted(folder) or "take a version of the model in safetensors"
    return (
        f"{folder} holds no safetensors, and pickled weights (.bin, .pth) can execute code and are not read; {remedy}"
    )


def _converted(folder: Path) -> str | None:
    """Where the same model is published in safetensors, judged by ``config.json``."""
    try:
        classes = read_json(folder / "config.json").get("architectures")
    except ModelError:
        return None
    names = classes if isinstance(classes, list) else []
    return next((_CONVERTED[name] for name in names if isinstance(name, str) and name in _CONVERTED), None)
