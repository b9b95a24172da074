"""Weights out: whole, merged where adapters were trained, in HF's layout or as one file in torchtune's names."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from medtune.models.adapters import merge_adapters
from medtune.models.weights import save_hf
from medtune.training.building import is_adapter
from medtune.training.checkpoints import write_folder
from medtune.training.config import TrainConfig
from medtune.training.optimization import whole_cpu
from medtune.training.runtime import Runtime


def whole_state(model: nn.Module, runtime: Runtime) -> dict[str, Tensor]:
    """The model's full state dict on the CPU of the first process; empty elsewhere. A collective."""
    state = {}
    for name, value in model.state_dict().items():
        full = whole_cpu(value)
        if runtime.is_main:
            state[name] = full
    return state


def export_weights(model: nn.Module, config: TrainConfig, runtime: Runtime, folder: Path) -> None:
    """Write the model's weights to ``folder``, whole or not at all; adapters are merged into what they adapt.

    The proxy belongs to the objective and never reaches this file.

    Args:
        model: The trained model, sharded or not.
        config: ``checkpoint`` (source of config and tokenizer files) and ``export`` are read.
        runtime: All processes call; the first writes.
        folder: Replaced if it exists.
    """
    state = whole_state(model, runtime)
    if runtime.is_main:
        if any(is_adapter(name) for name in state):
            arguments = config.model.arguments
            state = get_merged_lora_ckpt(
                state, rank=arguments.get("lora_rank", 8), alpha=arguments.get("lora_alpha", 16)
            )
        aside = folder.with_name(f".{folder.name}.writing")
        source = Path(config.checkpoint) if config.checkpoint else None

        def write(path: Path) -> None:
            if config.export == "hf":
                save_hf(state, model.family, path, source if source and source.is_dir() else None)  # type: ignore[arg-type]
            else:
                save_file({k: v.contiguous() for k, v in state.items()}, path / "model.safetensors")

        write_folder(aside, folder, write)
        shutil.rmtree(aside, ignore_errors=True)
    runtime.barrier()
    if runtime.device.type == "cuda":
        torch.cuda.empty_cache()
