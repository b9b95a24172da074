"""Names of a model's tensors in state dicts."""

from collections.abc import Iterable

import torch
from torch import nn
from torchtune.modules.model_fusion import FusionEmbedding, FusionLayer


def is_adapter_key(name: str) -> bool:
    """Whether a parameter name or state-dict key is a LoRA tensor."""
    return ".lora_a." in name or ".lora_b." in name


def with_other_beginning(name: str, pairs: Iterable[tuple[str, str]]) -> str:
    """Replace the beginning of a name: the first of the pairs (beginning, other one) that fits; else it stays."""
    for beginning, other in pairs:
        if name.startswith(beginning):
            return other + name[len(beginning) :]
    return name


def state_dict_names(model: nn.Module) -> dict[str, str]:
    """Parameter name -> state-dict key.

    They differ because torchtune's fusion modules and activation checkpointing leave out their own level of the name in
    state dicts.
    """
    hidden: list[tuple[str, str]] = []
    for prefix, module in model.named_modules():
        if isinstance(module, FusionLayer):
            hidden.append((f"{prefix}.layer.", f"{prefix}."))
        elif isinstance(module, FusionEmbedding):
            hidden.append((f"{prefix}.embedding.", f"{prefix}."))
    names = {}
    for name, _ in model.named_parameters():
        key = name
        for shown, kept in hidden:
            if name.startswith(shown):
                key = kept + name[len(shown) :]
        names[name] = key.replace("_checkpoint_wrapped_module.", "")
    return names


def expected_shapes(model: nn.Module) -> dict[str, torch.Size]:
    """State-dict key -> shape of every parameter and persistent buffer.

    No state dict is made, because that would dequantise NF4 weights.
    """
    keys = state_dict_names(model)
    shapes = {keys[name]: parameter.shape for name, parameter in model.named_parameters()}
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                shapes[f"{prefix}.{name}"] = buffer.shape
    return shapes
