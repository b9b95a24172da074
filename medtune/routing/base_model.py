"""The base model of several adapters: plain or in NF4, without adapters of its own."""

from typing import Any

import torch
from torch import nn
from torchao.dtypes.nf4tensor import NF4Tensor
from torchtune import training

from medtune.config import Component, instantiate
from medtune.errors import ModelError
from medtune.models.common.names import is_adapter_key
from medtune.models.lora.merge import discard_adapters, round_to_nf4
from medtune.models.lora.merged import without_adapters
from medtune.models.weights import load_weights


def load_base(
    model: Component, checkpoint: str, *, device: torch.device | str, dtype: torch.dtype, dense: bool = False
) -> Any:
    """Build a base model and load its weights.

    Args:
        model: Component of its builder: a plain one, or ``lora_NAME`` or ``qlora_NAME``, whose own adapters are left
            out. A builder with ``quantize_base`` gives NF4 weights.
        checkpoint: A folder in HF layout or one safetensors file.
        device: Device on which the model is built.
        dtype: Type of its weights.
        dense: Return a dense model whose weights are those of the NF4 model, dequantised; adapters can be merged into
            it. Without NF4 it makes no difference.

    Raises:
        ModelError: If the checkpoint does not fit the model.
    """
    plain = Component(without_adapters(model))
    with training.set_default_dtype(dtype), torch.device("meta"):
        told = instantiate(model)
    quantized = _has_nf4(told)
    with training.set_default_dtype(dtype), torch.device(device):
        built = instantiate(model if quantized and not dense else plain)
    weights = load_weights(checkpoint, built)
    if quantized and dense:
        weights = round_to_nf4(weights, told, dtype)
    missing, _ = built.load_state_dict(weights, strict=False)
    if absent := [name for name in missing if not is_adapter_key(name)]:
        raise ModelError(f"{checkpoint} lacks {len(absent)} tensors of the model (first: {absent[0]})")
    discard_adapters(built)
    return built.eval()


def _has_nf4(model: nn.Module) -> bool:
    return any(isinstance(parameter, NF4Tensor) for parameter in model.parameters())
