"""The builder of a model without adapters, which loads the merged weights that a LoRA run writes."""

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from medtune.errors import ModelError

PREFIXES = ("qlora_", "lora_")
OPTIONS = ("lora_", "apply_lora_", "quantize_base", "double_quant", "use_dora")
"""Beginnings of the arguments that only builders with adapters have."""


def without_adapters(component: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the component of a builder with adapters to that of the same model without them.

    Args:
        component: ``_component_`` and arguments, as in a config's ``model``. The builder's name tells whether it adds
            adapters: ``lora_NAME`` and ``qlora_NAME`` do, and ``NAME`` beside them does not.

    Returns:
        The converted component, or a copy of the component if it has no adapters.

    Raises:
        ModelError: If the module holds no builder without adapters.
    """
    module, _, name = str(component["_component_"]).rpartition(".")
    plain = next((name.removeprefix(prefix) for prefix in PREFIXES if name.startswith(prefix)), name)
    if plain == name:
        return dict(component)
    builder = getattr(importlib.import_module(module), plain, None)
    if builder is None:
        raise ModelError(f"{module} has no builder {plain} beside {name}; name the model without adapters yourself.")
    known = inspect.signature(builder).parameters
    kept = {key: value for key, value in component.items() if key in known or not key.startswith(OPTIONS)}
    return {**kept, "_component_": f"{module}.{plain}"}
