"""Writes weights: complete, with adapters merged, in HF's layout or as one file with torchtune's names."""

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from medtune.data.folders import write_folder
from medtune.errors import CheckpointError
from medtune.models.lora.merge import merge_adapters
from medtune.models.weights import save_hf
from medtune.training.config import TrainConfig
from medtune.training.run_folder import note_weights, refuse_foreign_files
from medtune.training.runtime import Runtime


def export_weights(model: Any, config: TrainConfig, runtime: Runtime, folder: Path) -> None:
    """Write the model's weights to ``folder``, whole or not at all; adapters are merged into the weights.

    Parameters of the objective (such as a proxy) are not written. A collective.

    Args:
        model: The trained model, sharded or not.
        config: ``checkpoint`` (source of config and tokenizer files) and ``export`` are read.
        runtime: All processes call; the first writes.
        folder: Replaced if it exists.

    Raises:
        CheckpointError: If writing fails.
        ConfigError: If the folder contains files that no run wrote.
    """
    state = runtime.collect(model.state_dict().items())
    runtime.on_rank0(lambda: _write(merge_adapters(state, model), model, config, folder))
    if runtime.device.type == "cuda":
        torch.cuda.empty_cache()


def _write(state: dict[str, Tensor], model: Any, config: TrainConfig, folder: Path) -> None:
    source = Path(config.checkpoint) if config.checkpoint else None

    def write(path: Path) -> None:
        if config.export == "hf":
            save_hf(state, model.family, path, source if source and source.is_dir() else None)
        else:
            save_file(state, path / "model.safetensors")
        note_weights(path, folder)

    refuse_foreign_files(folder)
    aside = folder.with_name(f".{folder.name}.writing")
    try:
        write_folder(aside, folder, write)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise CheckpointError(
            f"cannot write the weights to {folder}: {error}; free space and start again: the last checkpoint is whole"
        ) from error
