"""One adapter at a time, added to the weights of a model in memory and taken out again without drift."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torchao.dtypes.nf4tensor import NF4Tensor

from medtune.config import nearest
from medtune.errors import ModelError
from medtune.models.common.names import state_dict_names
from medtune.models.lora.merge import Adapter


class WeightMerger:
    """Merges adapters into the weights of a model: W + (alpha / rank) B A (LoRA, Hu et al. 2021, Eq. 3).

    ME-VLIP (section 2.3) answers a question in this way. Sums are taken in fp32. The weights are restored from a copy:
    to subtract what was added would change them a little with every question.

    Args:
        model: A plain model. Weights in NF4 cannot hold a sum.
        adapters: name -> adapter.

    Raises:
        ModelError: If an adapter does not fit the model, or is for a weight in NF4.
    """

    def __init__(self, model: Any, adapters: Mapping[str, Adapter]) -> None:
        keys = state_dict_names(model)
        self._weights = {keys[name]: parameter for name, parameter in model.named_parameters()}
        self.adapters = dict(adapters)
        for name, adapter in adapters.items():
            self._check(name, adapter)

    def _check(self, name: str, adapter: Adapter) -> None:
        sizes = {key: tuple(tensor.shape) for key, tensor in adapter.whole.items()}
        for prefix, strength in adapter.strengths.items():
            a, b = (adapter.state[f"{prefix}.{side}.weight"] for side in ("lora_a", "lora_b"))
            if len(a) != strength.rank or b.shape[1] != strength.rank:
                raise ModelError(f"adapter {name!r}: {prefix} has another rank than its config's {strength.rank}")
            sizes[f"{prefix}.weight"] = (len(b), a.shape[1])
        for key, size in sizes.items():
            weight = self._weights.get(key)
            if weight is None or tuple(weight.shape) != size:
                have = "no such tensor" if weight is None else list(weight.shape)
                raise ModelError(f"adapter {name!r} is of another base: {key} is {list(size)}, the model has {have}")
            if isinstance(weight, NF4Tensor):
                raise ModelError(f"adapter {name!r}: {key} is NF4, which no adapter can be merged into")

    @contextmanager
    def merged(self, name: str | None) -> Iterator[None]:
        """Within the context, the model's weights hold this adapter; None is the base.

        Raises:
            ModelError: If there is no adapter of this name.
        """
        if name is None:
            yield
            return
        if name not in self.adapters:
            raise ModelError(f"there is no adapter {name!r}; {nearest(name, self.adapters)}")
        before = self.add(self.adapters[name])
        try:
            yield
        finally:
            with torch.no_grad():
                for key, weight in before.items():
                    self._weights[key].copy_(weight)

    @torch.no_grad()
    def add(self, adapter: Adapter) -> dict[str, Tensor]:
        """Add an adapter to the weights; return copies of the weights before, by state-dict key."""
        changed = [*(f"{prefix}.weight" for prefix in adapter.strengths), *adapter.whole]
        before = {key: self._weights[key].clone() for key in changed}
        for key, tensor in adapter.whole.items():
            self._weights[key].copy_(tensor)
        for prefix, strength in adapter.strengths.items():
            weight = self._weights[f"{prefix}.weight"]
            a, b = (
                adapter.state[f"{prefix}.{side}.weight"].to(weight.device, torch.float32)
                for side in ("lora_a", "lora_b")
            )
            weight.copy_(weight.float() + strength.alpha / strength.rank * (b @ a))
        return before
