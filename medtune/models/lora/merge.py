"""Low-rank adapters of a model: collect them, switch them off, and merge them into the weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torchao.dtypes.nf4tensor import NF4Tensor, SubclassTensorArgs
from torchtune.modules.peft import LoRALinear

from medtune.models.common.family import StateDict
from medtune.models.common.names import is_adapter_key, state_dict_names
from medtune.models.lora.nf4 import is_single, quantize


@dataclass(frozen=True)
class Strength:
    """Rank and alpha of a low-rank adapter, which is scaled by ``alpha / rank``."""

    rank: int
    alpha: float


@dataclass(frozen=True)
class Adapter:
    """The adapters of one trained model, separate from the model.

    Attributes:
        state: ``lora_a`` [rank, in] and ``lora_b`` [out, rank] by state-dict key.
        strengths: state-dict prefix of each adapted linear layer -> its rank and alpha.
        whole: tensors that were fully trained in addition to the adapters, by state-dict key.
    """

    state: StateDict
    strengths: dict[str, Strength]
    whole: StateDict = field(default_factory=dict)


def adapter_of(model: nn.Module) -> Adapter:
    """The current adapters of a model, not copied. Other trained tensors are not included."""
    layers = adapted_layers(model)
    state = {
        f"{prefix}.{side}.weight": getattr(layer, side).weight.detach()
        for prefix, layer in layers.items()
        for side in ("lora_a", "lora_b")
    }
    return Adapter(state, {prefix: Strength(layer.rank, float(layer.alpha)) for prefix, layer in layers.items()})


def adapted_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """State-dict prefix -> linear layer that carries an adapter."""
    keys = state_dict_names(model)
    return {
        keys[f"{name}.lora_a.weight"].removesuffix(".lora_a.weight"): module
        for name, module in model.named_modules()
        if isinstance(module, LoRALinear)
    }


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Switch every low-rank adapter of a model off within the context.

    The model then computes what its base model computes, bit for bit. Nothing is copied or moved, so a frozen reference
    costs no memory. Gradients are off within the context, because activation checkpointing would run the layers again
    in the backward pass, after the adapters were switched on again.

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


def discard_adapters(model: nn.Module) -> None:
    """Remove A and B of every low-rank adapter of a model, which then computes, and holds, only its base.

    It cannot be undone. Quantised linear layers exist only in models that are built with adapters; a model that only
    answers needs none of its own.
    """
    for layer in model.modules():
        if isinstance(layer, LoRALinear):
            layer.disabled = True
            layer.lora_a = layer.lora_b = None  # type: ignore[assignment]


def adapters_are_zero(model: nn.Module) -> bool:
    """Whether no low-rank adapter adds anything yet; of a sharded model, in this process's shards.

    On the meta device, where there are no values, it is True.
    """
    for layer in model.modules():
        if isinstance(layer, LoRALinear):
            weight = layer.lora_b.weight.detach()
            weight = weight.to_local() if isinstance(weight, DTensor) else weight
            if not weight.is_meta and bool(weight.any()):
                return False
    return True


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


def round_to_nf4(state: StateDict, model: nn.Module, dtype: torch.dtype) -> StateDict:
    """The base weights that a QLoRA run trained on: NF4 weights are quantised and dequantised, the others stay.

    The adapter was trained on the rounded weights, so it must be merged into these and not into the exact weights. A
    run quantises what the file holds (fp16, for example) and keeps the factors of the blocks in its own dtype. Casting
    before quantising would round differently.

    Args:
        state: dense weights by state-dict key, in the dtype that the run quantised; not changed.
        model: its NF4 weights and their block sizes are used; may live on the meta device.
        dtype: dtype of the run, and of the rounded weights.
    """
    keys = state_dict_names(model)
    rounded = dict(state)
    for name, parameter in model.named_parameters():
        if isinstance(parameter, NF4Tensor) and keys[name] in state:
            dense = state[keys[name]].contiguous()
            packed = quantize(dense, parameter.block_size, parameter.scaler_block_size)
            rounded[keys[name]] = _factors_in(packed, dtype).get_original_weight()
    return rounded


def _factors_in(packed: NF4Tensor, dtype: torch.dtype) -> NF4Tensor:
    """A quantised tensor whose factors have another dtype, as after loading into a model of this dtype."""
    meta = SubclassTensorArgs(
        packed.size(), packed.stride(), packed.storage_offset(), dtype, packed.device, packed.requires_grad
    )
    return NF4Tensor(
        meta,
        packed.block_size,
        packed.n_blocks,
        packed.scaler_block_size,
        packed.quantized_scalers,
        packed.quantization_factor if is_single(packed) else packed.quantization_factor.to(dtype),
        packed.scaler_mean.to(dtype),
        packed.quantized_data,
        packed.nf4.to(dtype),
    )
