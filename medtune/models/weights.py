"""Read and write published weights, in safetensors only, because other formats can execute code."""

import functools
import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from medtune.data.writing import replaced, write_whole
from medtune.errors import ModelError
from medtune.models.common.family import ModelFamily, StateDict
from medtune.models.common.names import expected_shapes, is_adapter_key
from medtune.models.published_config import CONFIG_NAME, check_config, is_published, with_dtype
from medtune.models.weight_files import INDEX_NAME, SINGLE_NAME, read_json, read_tensors, weight_files

SHARD_BYTES = 5 * 10**9
_TUNE_PREFIXES = ("decoder.", "encoder.")
_OUTPUT = "decoder.output.weight"
_HEADER_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
}
_NAMED = 5  # an error lists at most this many tensor names


def load_weights(path: str | Path, model: nn.Module) -> StateDict:
    """Read a base model's weights under torchtune's names, checked against the model and mapped from disk.

    Args:
        path: a folder in the published layout (``config.json`` and safetensors), or one ``.safetensors`` file in
            torchtune's or the published names.
        model: the model they are for, with its ``family``; may live on the meta device. Its adapters need not be in
            the file.

    Returns:
        State-dict key -> tensor, in the file's dtype, on the CPU.

    Raises:
        ModelError: if the path holds no safetensors, a file is damaged, ``config.json`` describes another model, or
            tensors are missing, left over or of another size than the model's.
    """
    return _load(Path(path), model, None)


def check_weights(path: str | Path, model: nn.Module) -> None:
    """Check what :func:`load_weights` checks from the headers of the files alone, in a moment for any size.

    Raises:
        ModelError: as :func:`load_weights`.
    """
    _load(Path(path), model, _without_values)


def _without_values(reader: Any, name: str) -> Tensor:
    """A tensor of the meta device with the size and the type that a file's header names."""
    part = reader.get_slice(name)
    empty = torch.empty(part.get_shape(), dtype=torch.bool, device="meta")
    return empty.to(_HEADER_TYPES.get(part.get_dtype(), torch.uint8))


def _load(path: Path, model: nn.Module, take: Callable[[Any, str], Tensor] | None) -> StateDict:
    family: ModelFamily = model.family  # type: ignore[assignment]
    files = weight_files(path)
    if path.is_dir() or path.name == SINGLE_NAME:
        check_config(path if path.is_dir() else path.parent, family)
    state = read_tensors(files, take)
    if not any(name.startswith(_TUNE_PREFIXES) for name in state):
        state = _convert(state, family, path)
    _check(state, expected_shapes(model), path, family)
    return state


def _convert(state: StateDict, family: ModelFamily, path: Path) -> StateDict:
    try:
        return family.hf_to_tune(state)
    except Exception as error:  # torchtune's converter raises bare Exception on an unknown name
        raise ModelError(f"{path} does not hold the weights of {family.name}: {error}") from error


def _check(state: StateDict, expected: dict[str, torch.Size], path: Path, family: ModelFamily) -> None:
    missing = [name for name in expected if name not in state and not is_adapter_key(name)]
    extra = [name for name in state if name not in expected]
    misshaped = [
        f"{name} is {list(state[name].shape)}, the model has {list(size)}"
        for name, size in expected.items()
        if name in state and state[name].shape != size
    ]
    if missing == [_OUTPUT] and not extra and not misshaped:
        raise ModelError(
            f"{path} has no output layer of its own: its embeddings are tied (tie_word_embeddings), and those of "
            f"{family.name} are not. Take a model with an output layer, or the builder of a model with tied embeddings"
        )
    problems = [
        f"{len(names)} {what} ({_some(names)})"
        for what, names in (("missing", missing), ("not in the model", extra), ("of another size", misshaped))
        if names
    ]
    if problems:
        raise ModelError(
            f"{path} does not fit {family.name}: tensors " + "; ".join(problems) + _hint(misshaped, family)
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")


def _hint(misshaped: list[str], family: ModelFamily) -> str:
    if family.about:
        return f". Its {CONFIG_NAME} describes another model than the weights beside it; take all files of one download"
    if misshaped and all("positional_embedding" in line for line in misshaped):
        return ". Only position tables differ: image_size is not the one that the weights were made for"
    return ". Check the builder's sizes and the path"


def save_hf(
    model_state: StateDict,
    model_family: ModelFamily,
    out_dir: str | Path,
    source_dir: str | Path | None = None,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Write weights in the published layout: safetensors shards with an index, ``config.json``, tokenizer files.

    Only tensors that the published model has are written; a proxy instruction is never among them. All have one type,
    the widest of the state, and ``config.json`` names it. Files are written
    under temporary names and renamed, the index last, so that nobody mistakes an incomplete export for a complete one.

    Args:
        model_state: state dict of a plain model, on the CPU; adapters merged
            (:func:`medtune.models.lora.merge.merge_adapters`).
        model_family: the model's ``family``.
        out_dir: created if needed. Weights of an earlier export in it are replaced.
        source_dir: folder of the base weights: its ``config.json`` and tokenizer files are copied.
        shard_bytes: maximum size of a shard in bytes.

    Returns:
        ``out_dir``.

    Raises:
        ModelError: if the state has adapters or unknown tensors, or if tensors are missing.
    """
    published, dtype = _one_type(_publish(model_state, model_family))
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    shards = _plan(published, shard_bytes)
    (out / INDEX_NAME).unlink(missing_ok=True)
    names = []
    for number, keys in enumerate(shards, 1):
        name = SINGLE_NAME if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_tensors({key: published[key] for key in keys}, out / name)
        names.append(name)
    for old in out.glob("model*.safetensors"):
        if old.name not in names:
            old.unlink()
    if len(shards) > 1:
        weight_map = {key: name for name, keys in zip(names, shards, strict=True) for key in keys}
        total = sum(tensor.nbytes for tensor in published.values())
        _write_json({"metadata": {"total_size": total}, "weight_map": weight_map}, out / INDEX_NAME)
    _copy_companions(model_family, out, Path(source_dir) if source_dir else None, dtype)
    return out


def _one_type(state: StateDict) -> tuple[StateDict, torch.dtype]:
    """The tensors in the widest of their floating-point types, so that none is rounded; and that type."""
    dtype = functools.reduce(torch.promote_types, (t.dtype for t in state.values() if t.is_floating_point()))
    return {key: t.to(dtype) if t.is_floating_point() else t for key, t in state.items()}, dtype


def _publish(state: StateDict, family: ModelFamily) -> StateDict:
    adapters = [key for key in state if is_adapter_key(key)]
    if adapters:
        raise ModelError(f"{len(adapters)} adapter tensors cannot be exported as they are: merge them first")
    missing, extra = sorted(family.tensors - state.keys()), sorted(state.keys() - family.tensors)
    if missing or extra:
        raise ModelError(
            f"not an export of {family.name}: {len(missing)} tensors missing ({_some(missing)}), "
            f"{len(extra)} that the model does not have ({_some(extra)})"
        )
    return family.tune_to_hf(state)


def _plan(state: StateDict, limit: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for key in sorted(state):
        if shards[-1] and size + state[key].nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(key)
        size += state[key].nbytes
    return shards


def save_tensors(tensors: StateDict, file: Path) -> None:
    """Write one safetensors file atomically; everybody who may read the folder may read the file.

    Args:
        tensors: on the CPU; made contiguous.
        file: replaced if it exists.
    """
    with replaced(file) as aside:
        save_file({key: tensor.detach().contiguous() for key, tensor in tensors.items()}, aside, {"format": "pt"})


def _write_json(content: dict, file: Path) -> None:
    write_whole(file, json.dumps(content, indent=2, sort_keys=True) + "\n")


def _copy_companions(family: ModelFamily, out: Path, source: Path | None, dtype: torch.dtype) -> None:
    config = source / CONFIG_NAME if source else None
    # a config of the authors' own layout would not describe what is written here
    copied = family.copies_config and config is not None and config.is_file() and is_published(config, family)
    content = read_json(config) if copied and config is not None else family.hf_config()
    _write_json(with_dtype(content, dtype), out / CONFIG_NAME)
    for name, data in family.own_files().items():
        write_whole(out / name, data)
    if source is not None:
        _copy((source / name for name in family.tokenizer_files if (source / name).is_file()), source, out)


def _copy(files: Iterable[Path], source: Path, out: Path) -> None:
    for file in files:
        target = out / file.relative_to(source)
        if target.resolve() != file.resolve():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
