"""Random adapters of any size and place, and a model that carries one of them alone: what tests of a bank share."""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torchtune.modules.peft import LoRALinear

from medtune.models.lora.bank import _linear_maps
from medtune.models.lora.merge import Adapter, Strength


def random_adapter(model: nn.Module, prefixes: Iterable[str], rank: int, alpha: float, seed: int) -> Adapter:
    """An adapter of normal numbers on the given linear maps."""
    maps, generator = _linear_maps(model), torch.Generator().manual_seed(seed)
    state, strengths = {}, {}
    for prefix in prefixes:
        out, wide = maps[prefix].weight.shape  # type: ignore[union-attr, misc]
        state[f"{prefix}.lora_a.weight"] = torch.randn(rank, wide, generator=generator) * wide**-0.5
        state[f"{prefix}.lora_b.weight"] = torch.randn(out, rank, generator=generator) * 0.3
        strengths[prefix] = Strength(rank, alpha)
    return Adapter(state, strengths)


def alone(model: Any, adapter: Adapter, *, merged: bool = False) -> Any:
    """A copy of a plain model with one adapter, as torchtune computes it, or added to the weights."""
    model = copy.deepcopy(model)
    maps = _linear_maps(model)
    names = {id(module): name for name, module in model.named_modules()}
    for prefix, strength in adapter.strengths.items():
        plain: Any = maps[prefix]
        a, b = (adapter.state[f"{prefix}.{side}.weight"].to(plain.weight.dtype) for side in ("lora_a", "lora_b"))
        with torch.no_grad():
            if merged:
                plain.weight += strength.alpha / strength.rank * (b.double() @ a.double()).to(plain.weight.dtype)
                continue
            layer = LoRALinear(plain.in_features, plain.out_features, strength.rank, strength.alpha,
                               use_bias=plain.bias is not None).to(plain.weight.dtype)  # fmt: skip
            values = {"weight": plain.weight, "lora_a.weight": a, "lora_b.weight": b}
            layer.load_state_dict(values | ({} if plain.bias is None else {"bias": plain.bias}))
        owner, _, own = names[id(plain)].rpartition(".")
        setattr(model.get_submodule(owner), own, layer)
    return model
