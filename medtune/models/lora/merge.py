"""Low-rank adapters as part of the weights that they adapt."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn
from torchao.dtypes.nf4tensor import NF4Tensor
from torchtune.modules.peft import LoRALinear

from medtune.models.common.family import StateDict
from medtune.models.common.names import is_adapter_key, state_dict_names


@dataclass(frozen=True)
class Strength:
    """How a low-rank adapter is scaled: by ``alpha / rank``."""

    rank: int
    alpha: float


@dataclass(frozen=True)
class Adapter:
    """The adapters of one trained model, apart from the model.

    Attributes:
        state: ``lora_a`` [rank, in] and ``lora_b`` [out, rank] by state-dict key.
        strengths: state-dict prefix of each adapted linear map -> its rank and alpha.
        whole: tensors that were trained whole beside the adapters, by state-dict key.
    """

    state: StateDict
    strengths: dict[str, Strength]
    whole: StateDict = field(default_factory=dict)


def adapter_of(model: nn.Module) -> Adapter:
    """The adapters that a model holds now, without a copy; what else was trained is not among them."""
    layers = adapted_layers(model)
    state = {
        f"{prefix}.{side}.weight": getattr(layer, side).weight.detach()
        for prefix, layer in layers.items()
        for side in ("lora_a", "lora_b")
    }
    return Adapter(state, {prefix: Strength(layer.rank, float(layer.alpha)) for prefix, layer in layers.items()})


def adapted_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """State-dict prefix -> linear map that carries an adapter."""
    keys = state_dict_names(model)
    return {
        keys[f"{name}.lora_a.weight"].removesuffix(".lora_a.weight"): module
        for name, module in model.named_modules()
        if isinstance(module, LoRALinear)
    }


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Within the context every low-rank adapter of a model adds nothing: what it computes is its base, to the bit.

    Nothing is copied or moved, so a frozen reference costs no memory. There are no gradients within: activation
    checkpointing would run the layers again in the backward pass, when the adapters are back.

    Args:
        model: any module; sharded and compiled layers are switched too. Without adapters nothing changes.
    """
    layers = [module for module in model.modules() if isinstance(module, LoRALinear)]
    before = [layer.disabled for layer in layers]
    for layer in layers:
        layer.disabled = True
    try:
        with torch.no_grad():
            yield
    finally:
        for layer, disabled in zip(layers, before, strict=True):
            layer.disabled = disabled


def merge_adapters(state: StateDict, model: nn.Module) -> StateDict:
    """Add every low-rank adapter to the weight it adapts: W + (alpha / rank) B A (LoRA, Hu et al. 2021, Eq. 3).

    Args:
        state: the model's full state dict, on one device; not changed.
        model: gives each adapter's scale; may live on the meta device.

    Returns:
        A state dict without adapter tensors, as a plain model has it. Sums are taken in fp32.
    """
    merged = {key: tensor for key, tensor in state.items() if not is_adapter_key(key)}
    for prefix, layer in adapted_layers(model).items():
        base = merged[f"{prefix}.weight"]
        update = state[f"{prefix}.lora_b.weight"].float() @ state[f"{prefix}.lora_a.weight"].float()
        scale = layer.alpha / layer.rank
        merged[f"{prefix}.weight"] = (base.float() + scale * update.to(base.device)).to(base.dtype)
    return merged


def round_to_nf4(state: StateDict, model: nn.Module) -> StateDict:
    """The base weights that a QLoRA run trained on: those kept as NF4 go there and back, the others stay.

    An adapter learns beside the rounded weights, so it is merged into them and not into the exact ones.

    Args:
        state: dense weights by state-dict key, in the dtype of the run; not changed.
        model: says which weights are NF4 and in what blocks; may live on the meta device.
    """
    keys = state_dict_names(model)
    rounded = dict(state)
    for name, parameter in model.named_parameters():
        if isinstance(parameter, NF4Tensor) and keys[name] in state:
            dense = state[keys[name]].contiguous()
            packed = NF4Tensor.from_tensor(dense, parameter.block_size, parameter.scaler_block_size)
            rounded[keys[name]] = packed.get_original_weight().to(dense.dtype)
    return rounded
