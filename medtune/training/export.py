"""Writes weights: complete with adapters merged, in HF's layout or with torchtune's names, or the adapter alone."""

import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from medtune.data.folders import write_folder
from medtune.errors import CheckpointError
from medtune.models.common.names import is_adapter_key, state_dict_names
from medtune.models.lora.merge import merge_adapters
from medtune.models.lora.peft import save_peft
from medtune.models.weights import save_hf
from medtune.training.adapter_record import write_record
from medtune.training.config import TrainConfig
from medtune.training.parts import canonical
from medtune.training.run_folder import note_weights, refuse_foreign_files
from medtune.training.runtime import Runtime


def export_weights(
    model: Any,
    config: TrainConfig,
    runtime: Runtime,
    folder: Path,
    trained: Collection[str] = (),
    record: Callable[[], Mapping[str, Any]] | None = None,
) -> None:
    """Write the model's weights to ``folder``, whole or not at all.

    Adapters are merged into the weights, or written alone in PEFT's format (``export: peft``). Parameters of the
    objective (such as a proxy) are not written. A collective.

    Args:
        model: The trained model, sharded or not.
        config: ``checkpoint`` (source of config and tokenizer files) and ``export`` are read.
        runtime: All processes call; the first writes.
        folder: Replaced if it exists.
        trained: For ``peft``, names of all trained parameters; those that are no adapters go into ``modules_to_save``.
        record: For ``peft``, makes what is written beside the adapter (:mod:`medtune.training.adapter_record`).

    Raises:
        CheckpointError: If writing fails.
        ConfigError: If the folder contains files that no run wrote.
        ModelError: For ``peft``, if the model has no adapters, or PEFT cannot hold what was trained beside them.
    """
    if config.export == "peft":
        state = runtime.collect(_of_the_adapter(model, trained).items())
        runtime.on_rank0(lambda: _write_whole(lambda path: _write_adapter(state, model, config, record, path), folder))
    else:
        state = runtime.collect(model.state_dict().items())
        runtime.on_rank0(lambda: _write(merge_adapters(state, model), model, config, folder))
    if runtime.device.type == "cuda":
        torch.cuda.empty_cache()


def _of_the_adapter(model: Any, trained: Collection[str]) -> dict[str, Tensor]:
    """Adapters and fully trained tensors by state-dict key; a state dict would hold the whole base in addition."""
    keys = state_dict_names(model)
    return {
        canonical(keys[name]): parameter.detach()
        for name, parameter in model.named_parameters()
        if is_adapter_key(keys[name]) or canonical(name) in trained
    }


def _write_adapter(
    state: dict[str, Tensor],
    model: Any,
    config: TrainConfig,
    record: Callable[[], Mapping[str, Any]] | None,
    path: Path,
) -> None:
    adapters = {key: tensor for key, tensor in state.items() if is_adapter_key(key)}
    whole = {key: tensor for key, tensor in state.items() if key not in adapters}
    save_peft(adapters, model, path, str(Path(str(config.checkpoint)).resolve()), whole=whole)
    if record is not None:
        write_record(record(), path)


def _write(state: dict[str, Tensor], model: Any, config: TrainConfig, folder: Path) -> None:
    source = Path(config.checkpoint) if config.checkpoint else None

    def write(path: Path) -> None:
        if config.export == "hf":
            save_hf(state, model.family, path, source if source and source.is_dir() else None)
        else:
            save_file(state, path / "model.safetensors")

    _write_whole(write, folder)


def _write_whole(write: Callable[[Path], None], folder: Path) -> None:
    def noted(path: Path) -> None:
        write(path)
        note_weights(path, folder)

    refuse_foreign_files(folder)
    aside = folder.with_name(f".{folder.name}.writing")
    try:
        write_folder(aside, folder, noted)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise CheckpointError(
            f"cannot write the weights to {folder}: {error}; free space and start again: the last checkpoint is whole"
        ) from error
