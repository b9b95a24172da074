"""Options of low-rank adapters for every family: which layers carry them, and their rank and scale."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, ClassVar, Self

import torch
from torch import nn
from torchtune.modules import FrozenNF4Linear
from torchtune.modules.common_utils import reparametrize_as_dtype_state_dict_post_hook
from torchtune.modules.peft import LoRALinear

from medtune.config import nearest
from medtune.errors import ModelError

ATTENTION = ("q_proj", "k_proj", "v_proj", "output_proj")
LoraParts = tuple[str, ...] | list[str] | dict[str, dict[str, Any] | None]
"""``lora_parts`` of a model builder: the adapted parts, or part -> the options that differ there."""

_ARGUMENTS = {
    "attn_modules": "lora_attn_modules",
    "parts": "lora_parts",
    "mlp": "apply_lora_to_mlp",
    "output": "apply_lora_to_output",
    "rank": "lora_rank",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "quantize_base": "quantize_base",
}
_OPTIONAL = {"double_quant": True}  # arguments that only some builders have
_PER_PART = ("rank", "alpha", "dropout", "attn_modules", "mlp", "output")


@dataclass(frozen=True)
class AdapterOptions:
    """Options of a model's adapters (LoRA, Hu et al. 2021; QLoRA, Dettmers et al. 2023).

    Each family defines which of its parts can carry adapters. The options apply to every part; if ``parts`` is a
    mapping, it can override them for a part, as in
    ``{"vision": {"rank": 32, "alpha": 64}, "decoder": {"rank": 128, "alpha": 256}}``; see :meth:`for_part`.

    Attributes:
        known_parts: parts that can be adapted.
        without_effect: part -> options that have no effect there and are rejected.
        attn_modules: attention projections that carry adapters, some of ``q_proj``, ``k_proj``, ``v_proj``,
            ``output_proj``.
        parts: some of ``known_parts``, or a mapping from a part to the options that differ there: any of ``rank``,
            ``alpha``, ``dropout``, ``attn_modules``, ``mlp``, ``output``.
        mlp: adapters in the MLPs too.
        output: adapters on the decoder's output layer too.
        rank: rank of each adapter.
        alpha: scale of each adapter, divided by its rank.
        dropout: dropout before each adapter.
        quantize_base: keep the linear layers of adapted parts as NF4.
        double_quant: quantise the scales of NF4's blocks too (8 bits), as QLoRA does; otherwise they stay in fp32.

    Raises:
        ModelError: if a part, a module or an option is unknown, no part or module is named, or a number is out of
            range.
    """

    known_parts: ClassVar[tuple[str, ...]] = ("decoder",)
    without_effect: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    attn_modules: tuple[str, ...] = ATTENTION
    parts: tuple[str, ...] | Mapping[str, Mapping[str, Any] | None] = ("decoder",)
    mlp: bool = False
    output: bool = False
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    quantize_base: bool = False
    double_quant: bool = True

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any], **more: Any) -> Self:
        """The options that a model builder was called with.

        Args:
            arguments: the builder's ``locals()``; the arguments of LoRA are picked out by their names.
            more: further fields of a family's class.
        """
        optional = {name: arguments.get(name, default) for name, default in _OPTIONAL.items()}
        return cls(**{field: arguments[name] for field, name in _ARGUMENTS.items()}, **optional, **more)

    def __post_init__(self) -> None:
        object.__setattr__(self, "attn_modules", tuple(self.attn_modules))
        if not isinstance(self.parts, Mapping):
            object.__setattr__(self, "parts", tuple(self.parts))
        for key, given, known in (
            ("lora_parts", self.parts, self.known_parts),
            ("lora_attn_modules", self.attn_modules, ATTENTION),
        ):
            if not given or set(given) - set(known):
                raise ModelError(f"{key} must be some of {', '.join(known)}; got {list(given)}")
        if self.rank < 1 or self.alpha <= 0 or not 0 <= self.dropout < 1:
            raise ModelError(
                f"lora_rank must be at least 1, lora_alpha positive and lora_dropout in [0, 1); got {self.rank}, "
                f"{self.alpha} and {self.dropout}"
            )
        if not self.double_quant and not self.quantize_base:
            raise ModelError("double_quant: false is about 4-bit weights; set quantize_base, or leave it out")
        if isinstance(self.parts, Mapping):
            for part in self.parts:
                self._check_overrides(part)

    def _check_overrides(self, part: str) -> None:
        changes = self._overrides(part)
        allowed = [name for name in _PER_PART if name not in self.without_effect.get(part, ())]
        for name, value in changes.items():
            if name not in allowed:
                raise ModelError(f"lora_parts.{part}: no option {name!r} here; {nearest(str(name), allowed)}")
            wanted = {"rank": int, "mlp": bool, "output": bool, "attn_modules": list | tuple}.get(name, int | float)
            if not isinstance(value, wanted) or (wanted is not bool and isinstance(value, bool)):
                raise ModelError(f"lora_parts.{part}.{name}: {value!r} is of another type")
        try:
            replace(self, parts=(part,), **changes)
        except ModelError as error:
            raise ModelError(f"lora_parts.{part}: {error}") from error

    def _overrides(self, part: str) -> Mapping[str, Any]:
        changes = self.parts[part] if isinstance(self.parts, Mapping) else None
        if changes is not None and not isinstance(changes, Mapping):
            raise ModelError(f"lora_parts.{part} must be a mapping of options, as in {{rank: 32}}; got {changes!r}")
        return changes or {}

    def for_part(self, part: str) -> Self | None:
        """The options of one part, or None where it carries no adapters."""
        return replace(self, parts=(part,), **self._overrides(part)) if part in self.parts else None

    def same_as(self, other: "AdapterOptions | None") -> bool:
        """Whether another part's options equal these, apart from the part itself."""
        names = [field.name for field in fields(self) if field.name != "parts"]
        return other is not None and all(getattr(self, name) == getattr(other, name) for name in names)

    def torchtune(self) -> dict[str, Any]:
        """These options as torchtune's builders take them."""
        return {
            "lora_attn_modules": list(self.attn_modules),
            "apply_lora_to_mlp": self.mlp,
            "apply_lora_to_output": self.output,
            "lora_rank": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "quantize_base": self.quantize_base,
        }


def linear(
    wide: int, out: int, lora: AdapterOptions | None, *, adapted: bool, bias: bool, quantize: bool | None = None
) -> nn.Module:
    """Build a linear layer: plain, with an adapter, or frozen in NF4 next to layers with adapters.

    Args:
        wide: size of the input.
        out: size of the output.
        lora: options of the part that the layer belongs to; None if the part carries no adapters.
        adapted: whether this layer carries an adapter.
        bias: whether the layer has a bias.
        quantize: whether the base weight is NF4; None takes the options' value.
    """
    if lora is None:
        return nn.Linear(wide, out, bias=bias)
    nf4 = lora.quantize_base if quantize is None else quantize
    if adapted:
        return LoRALinear(
            wide, out, rank=lora.rank, alpha=lora.alpha, dropout=lora.dropout, use_bias=bias, quantize_base=nf4
        )
    return (FrozenNF4Linear if nf4 else nn.Linear)(wide, out, bias=bias)


def adapt(owner: nn.Module, name: str, lora: AdapterOptions, *, adapted: bool) -> None:
    """Replace a plain linear layer by an adapted or quantised one, with newly initialised values.

    Args:
        owner: the module that holds the layer.
        name: attribute name of the layer in it.
        lora: options of the part.
        adapted: whether the layer carries an adapter.
    """
    plain = getattr(owner, name)
    if adapted or lora.quantize_base:
        new = linear(plain.in_features, plain.out_features, lora, adapted=adapted, bias=plain.bias is not None)
        setattr(owner, name, new)


def keep_dtype_in_state_dicts(model: nn.Module, dtype: torch.dtype) -> None:
    """Make state dicts hold dequantised weights in the model's dtype; some of torchtune's builders always take bf16.

    Args:
        model: a model whose parts were built with ``quantize_base``; without NF4 weights nothing changes.
        dtype: type of its other weights.
    """
    for module in model.modules():
        for key, hook in module._state_dict_hooks.items():
            if isinstance(hook, partial) and hook.func is reparametrize_as_dtype_state_dict_post_hook:
                module._state_dict_hooks[key] = partial(hook.func, *hook.args, **{**hook.keywords, "dtype": dtype})
