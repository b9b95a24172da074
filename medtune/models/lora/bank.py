"""Several low-rank adapters on one base model, one of which is chosen for each row of a batch.

All adapters of a linear layer are concatenated: ``A`` [R, in] and ``B`` [out, R], where R is the sum of their ranks.
For each row, the part of ``A x`` that belongs to its adapter is kept and the rest is set to zero. Each row therefore
computes y = W x + (alpha / r) B' A' x with the A' and B' of its own adapter (LoRA, Hu et al. 2021, Eq. 3). The adapters
may differ in rank, scale and adapted layers. Shapes do not depend on which adapters are chosen. A row without an
adapter computes what the base model computes, bit for bit.

A pass of many tokens per row (a prompt) copies each row's own A and B instead, and multiplies row by row: to compute
all of ``A x`` and to drop most of it would cost more than the copies.
"""

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchtune.modules.peft import LoRALinear

from medtune.config import nearest
from medtune.errors import ModelError
from medtune.models.common.early_fusion import EarlyFusionVLM, encoded_tiles
from medtune.models.common.names import state_dict_names
from medtune.models.lora.merge import Adapter

BASE = -1
"""The index that stands for no adapter."""
COPIED_FROM = 16
"""Least number of tokens per row for which each row's own A and B are copied."""
_ENCODER = "encoder."
_OUTPUT = "decoder.output"
Rows = Tensor | Sequence[int | str | None]


class AdapterBank:
    """Attaches several adapters to the linear layers of a model, for generation and not for training.

    The model's parts, names and state dict do not change, because the adapters are added by forward hooks. If the model
    was built with LoRA, its own adapters are switched off. Within :meth:`route` each row of a forward pass uses its
    adapter; a forward pass outside of it raises an error. :meth:`close` removes the adapters.

    The rows of the batch must keep their order. A caller that repeats or reorders rows, or runs only some of them,
    declares this with :meth:`rows`. If an adapter is in the image encoder, image features depend on the row: they must
    then be computed by :meth:`encode`, and rows with different adapters cannot share them.

    Args:
        model: A VLM in the family that the adapters are for; its base may be NF4.
        adapters: name -> adapter, from :func:`medtune.models.lora.peft.read_peft` or
            :func:`medtune.models.lora.merge.adapter_of`.

    Attributes:
        names: names of the adapters, in the order of their indices.
        adapts_encoder: whether an adapter is in the image encoder, so that image features depend on the row.

    Raises:
        ModelError: if there is no adapter, or an adapter belongs to another model, is not finite, or changes what
            cannot differ between rows (the output head, or fully trained tensors).
    """

    def __init__(self, model: Any, adapters: Mapping[str, Adapter]) -> None:
        if not adapters:
            raise ModelError("an adapter bank needs at least one adapter")
        self.model, self.names = model, tuple(adapters)
        modules = _linear_maps(model)
        for name, adapter in adapters.items():
            _check(name, adapter, modules)
        self._route: _Route | None = None
        self._encoding: _Route | None = None
        self._model_adapters = [module for module in model.modules() if isinstance(module, LoRALinear)]
        self._disabled = [layer.disabled for layer in self._model_adapters]
        for layer in self._model_adapters:
            layer.disabled = True
        self._hooks = []
        layouts: dict[Hashable, int] = {}
        for prefix in sorted({prefix for adapter in adapters.values() for prefix in adapter.strengths}):
            wide = _Wide.of(prefix, list(adapters.values()), modules[prefix], layouts)
            self._hooks.append(modules[prefix].register_forward_hook(self._hook(wide)))
        self.adapts_encoder = any(
            prefix.startswith(_ENCODER) for adapter in adapters.values() for prefix in adapter.strengths
        )

    def index(self, name: str) -> int:
        """The index of an adapter.

        Raises:
            ModelError: if there is no adapter of this name; the message names the nearest one.
        """
        if name not in self.names:
            raise ModelError(f"the bank holds no adapter {name!r}; {nearest(name, self.names)}")
        return self.names.index(name)

    @contextmanager
    def route(self, rows: Rows) -> Iterator[None]:
        """Within the context, row i of every forward pass uses the adapter ``rows[i]``.

        Args:
            rows: for each row of the batch an index (-1 is the base) or a name (None is the base).

        Raises:
            ModelError: if an adapter is not in the bank. A forward pass within the context raises it if it has another
                number of rows.
        """
        before, self._route = self._route, _Route(self._indices(rows))
        try:
            yield
        finally:
            self._route = before

    def set_route(self, rows: Rows) -> None:
        """From now on, row i of every forward pass uses the adapter ``rows[i]``; :meth:`route` for a single context.

        A decoder that reads one token per pass calls this before each pass; an unchanged route costs nothing.

        Raises:
            ModelError: if an adapter is not in the bank.
        """
        chosen = self._indices(rows)
        if self._route is None or self._route.chosen != chosen:
            self._route = _Route(chosen)

    def _indices(self, rows: Rows) -> tuple[int, ...]:
        return tuple(self._chosen(row) for row in (rows.tolist() if isinstance(rows, Tensor) else rows))

    def _chosen(self, row: int | str | None) -> int:
        if row is None:
            return BASE
        index = self.index(row) if isinstance(row, str) else int(row)
        if not BASE <= index < len(self.names):
            raise ModelError(f"the bank holds adapters 0 to {len(self.names) - 1} (-1 is the base), not {index}")
        return index

    @contextmanager
    def rows(self, order: Tensor | Sequence[int]) -> Iterator[None]:
        """Within the context, row i of a forward pass is row ``order[i]`` of the routed batch.

        Raises:
            ModelError: outside of :meth:`route`, or if the batch has no such row.
        """
        chosen = self._routed().chosen
        picked = [int(row) for row in order]
        if picked and not 0 <= min(picked) <= max(picked) < len(chosen):
            raise ModelError(f"rows {min(picked)} to {max(picked)} of a batch of {len(chosen)} were asked for")
        with self.route([chosen[row] for row in picked]):
            yield

    def encode(self, vision: dict[str, Tensor]) -> Tensor:
        """Run the model's ``encode``; each tile uses the adapter of its row.

        Raises:
            ModelError: outside of :meth:`route`, or if the images belong to another number of rows.
        """
        route = self._routed()
        b, i, t = vision["images"].shape[:3]
        if b != len(route.chosen):
            raise ModelError(f"images of {b} rows were encoded under a route of {len(route.chosen)}")
        if isinstance(self.model, EarlyFusionVLM):
            owners = (encoded_tiles(vision) // (i * t)).tolist()
        else:
            owners = (self.model.encoded_images(vision) // i).tolist()
        self._encoding = _Route(tuple(route.chosen[row] for row in owners))
        try:
            return self.model.encode(vision)
        finally:
            self._encoding = None

    def close(self) -> None:
        """Remove the adapters and restore the model."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._route = [], None
        for layer, disabled in zip(self._model_adapters, self._disabled, strict=True):
            layer.disabled = disabled
        self._model_adapters, self._disabled = [], []

    def _routed(self) -> "_Route":
        if self._route is None:
            raise ModelError("a model with an adapter bank was called outside of `with bank.route(...)`")
        return self._route

    def _hook(self, wide: "_Wide") -> Any:
        def add(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if not wide.prefix.startswith(_ENCODER):
                return wide.add(arguments[0], output, self._routed())
            if self._encoding is None:
                raise ModelError(
                    f"an adapter stands in the image encoder ({wide.prefix}), so that an image's features depend on "
                    "the row; encode by the bank, and share no features between rows"
                )
            return wide.add(arguments[0], output, self._encoding)

        return add


@dataclass
class _Route:
    """The adapter of each row, and the masks and scales computed from it, by a layer's layout and an input's axes."""

    chosen: tuple[int, ...]
    cache: dict[tuple[int, int], "_Choice | None"] = field(default_factory=dict)


@dataclass(frozen=True)
class _Wide:
    """The adapters of one linear layer.

    Attributes:
        prefix: prefix of the layer in state dicts.
        a: [R, in], the A matrices of all adapters of this layer, concatenated by rows.
        b: [R, out], their B matrices, transposed and concatenated by rows.
        owner: [R], the index of the adapter that a row of ``a`` belongs to.
        scales: alpha / rank by adapter index; 0 for adapters that do not adapt this layer, and 0 for the base at the
            end.
        layout: layers of one layout have equal ``owner`` and ``scales``, and so one mask and scale per route.
    """

    prefix: str
    a: Tensor
    b: Tensor
    owner: Tensor
    scales: Tensor
    layout: int

    @staticmethod
    def of(prefix: str, adapters: Sequence[Adapter], module: nn.Module, layouts: dict[Hashable, int]) -> "_Wide":
        place, dtype = _place(module)
        present = [(index, adapter) for index, adapter in enumerate(adapters) if prefix in adapter.strengths]
        scales = [0.0] * (len(adapters) + 1)
        for index, adapter in present:
            scales[index] = adapter.strengths[prefix].alpha / adapter.strengths[prefix].rank
        a = torch.cat([adapter.state[f"{prefix}.lora_a.weight"].to(place, dtype) for _, adapter in present])
        b = torch.cat([adapter.state[f"{prefix}.lora_b.weight"].to(place, dtype).t() for _, adapter in present])
        owner = [index for index, adapter in present for _ in range(adapter.strengths[prefix].rank)]
        layout = layouts.setdefault((*owner, *scales, place), len(layouts))
        return _Wide(prefix, a, b, torch.tensor(owner, device=place), torch.tensor(scales, device=place), layout)

    def add(self, x: Tensor, output: Tensor, route: _Route) -> Tensor:
        """Add to each row of ``output`` what the row's adapter computes.

        Raises:
            ModelError: if ``x`` has another number of rows than the route.
        """
        if x.shape[0] != len(route.chosen):
            # a route of one row would silently be broadcast to all rows
            raise ModelError(f"{self.prefix}: a pass of {x.shape[0]} rows under a route of {len(route.chosen)}")
        key = (self.layout, x.ndim)
        if key not in route.cache:
            route.cache[key] = self._of(route, x.ndim)
        choice = route.cache[key]
        if choice is None:
            return output
        # the scale is in fp32 and apart from the mask, as for a single adapter, so that bf16 rounds in the same way
        return output + (choice.scale * self._product(x, choice)).to(output.dtype)

    def _product(self, x: Tensor, choice: "_Choice") -> Tensor:
        """B A x of each row's own A and B, in one of two forms that do the same."""
        if x.ndim < 3 or x.shape[1] < COPIED_FROM:
            return F.linear(x, self.a).masked_fill(choice.others, 0) @ self.b
        flat = x.flatten(1, -2)
        h = torch.bmm(flat, self.a[choice.picked].transpose(1, 2))
        if choice.beyond is not None:
            h = h.masked_fill(choice.beyond, 0)
        return torch.bmm(h, self.b[choice.picked]).view(*x.shape[:-1], -1)

    def _of(self, route: _Route, ndim: int) -> "_Choice | None":
        """What the rows of a route choose here; None if no row has an adapter here."""
        if not set(route.chosen) & set(self.owner.tolist()):
            return None
        device = self.owner.device
        chosen = torch.tensor(route.chosen, device=device)
        middle = (1,) * (ndim - 2)
        mine = self.owner[None] == chosen[:, None]
        own = [row.nonzero().flatten().tolist() for row in mine.cpu()]
        most = max(map(len, own))
        picked = torch.tensor([[*rows, *[0] * (most - len(rows))] for rows in own], device=device)
        beyond = torch.arange(most, device=device) >= mine.sum(1)[:, None]
        return _Choice(
            ~mine.view(len(chosen), *middle, -1),
            self.scales[chosen].view(len(chosen), *middle, 1),
            picked,
            beyond[:, None] if any(len(rows) < most for rows in own) else None,
        )


@dataclass(frozen=True)
class _Choice:
    """What the rows of a route use of the adapters of a layer.

    Attributes:
        others: what is not of the row's adapter, [b, 1, R].
        scale: [b, 1, 1].
        picked: for each row, which of the R belong to its adapter, [b, r]; r is the largest rank, and rows of smaller
            rank are filled up.
        beyond: what was filled up, [b, 1, r]; None if all rows have the same rank.
    """

    others: Tensor
    scale: Tensor
    picked: Tensor
    beyond: Tensor | None


def _linear_maps(model: nn.Module) -> dict[str, nn.Module]:
    """State-dict prefix -> linear layer: plain, quantised, or with LoRA."""
    keys = state_dict_names(model)
    return {
        keys[f"{name}.weight"].removesuffix(".weight"): module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | LoRALinear) and not name.endswith((".lora_a", ".lora_b"))
    }


def _place(module: Any) -> tuple[torch.device, torch.dtype]:
    """Device and dtype in which a linear layer computes; for NF4 the dtype that it was quantised from."""
    return module.weight.device, module.weight.dtype


def _check(name: str, adapter: Adapter, modules: Mapping[str, nn.Module]) -> None:
    if adapter.whole:
        raise ModelError(
            f"adapter {name!r} changes {len(adapter.whole)} tensors as a whole (first: {min(adapter.whole)}), which "
            "cannot be chosen per row; serve it merged, or train adapters alone"
        )
    wanted = {f"{prefix}.{side}.weight" for prefix in adapter.strengths for side in ("lora_a", "lora_b")}
    if adapter.state.keys() != wanted or not wanted:
        odd = sorted(adapter.state.keys() ^ wanted)
        raise ModelError(f"adapter {name!r} is not whole: tensors and strengths differ at {odd[:1] or 'nothing'}")
    for prefix, strength in adapter.strengths.items():
        if prefix == _OUTPUT:
            raise ModelError(
                f"adapter {name!r} stands on the output head, which is called with single positions, not with the "
                "batch's rows; serve it merged, or train it without apply_lora_to_output"
            )
        if prefix not in modules:
            raise ModelError(
                f"adapter {name!r}: the model has no linear map {prefix}; is it of another family or size?"
            )
        out, wide = _size(modules[prefix])
        a, b = adapter.state[f"{prefix}.lora_a.weight"], adapter.state[f"{prefix}.lora_b.weight"]
        shapes, expected = (tuple(a.shape), tuple(b.shape)), ((strength.rank, wide), (out, strength.rank))
        if shapes != expected:
            raise ModelError(f"adapter {name!r}: {prefix} has A and B of {shapes}, the model needs {expected}")
        # zero times infinity is NaN, which would reach the rows of every other adapter
        if not (math.isfinite(strength.alpha) and a.isfinite().all() and b.isfinite().all()):
            raise ModelError(f"adapter {name!r}: {prefix} is not finite")


def _size(module: Any) -> tuple[int, int]:
    if isinstance(module, LoRALinear):
        return module.out_dim, module.in_dim
    return module.out_features, module.in_features
