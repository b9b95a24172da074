"""The last step of building a model, the same for every family."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from medtune.models.common.lean_layers import use_lean_layers
from medtune.models.common.names import expected_shapes, is_adapter_key
from medtune.models.lora.nf4 import keep_scales
from medtune.models.lora.options import AdapterOptions, keep_dtype_in_state_dicts


def finish(
    model: Any, lora: AdapterOptions | None, to_peft: Callable[..., Any], from_peft: Callable[..., Any], **known: Any
) -> None:
    """Let a new model's layers run medtune's code, and prepare it for reading and writing its files.

    State dicts hold dequantised weights in the model's dtype, exact scales are kept if they were asked for, and the
    model's family learns which tensors are the base's and how adapters are written for PEFT and read.

    Args:
        model: the model, with its ``family``.
        lora: its adapters, or None.
        to_peft: the family's ``adapters_to_peft``.
        from_peft: the family's ``adapters_from_peft``.
        known: arguments of both, such as the model's shape.
    """
    use_lean_layers(model)
    keep_dtype_in_state_dicts(model, model.decoder.norm.scale.dtype)
    if lora is not None and not lora.double_quant:
        keep_scales(model)
    base = frozenset(key for key in expected_shapes(model) if not is_adapter_key(key))
    model.family = replace(
        model.family,
        tensors=base,
        adapters_to_peft=partial(to_peft, **known),
        adapters_from_peft=partial(from_peft, **known),
    )
