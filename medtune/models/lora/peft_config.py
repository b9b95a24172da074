"""``adapter_config.json`` of PEFT: rank and alpha of every module, and the kinds of adapters that are rejected."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchtune.modules.peft import LoRALinear

from medtune.data.opening import refuse_special
from medtune.errors import ModelError
from medtune.models.lora.merge import Strength

CONFIG_NAME = "adapter_config.json"
# Options that change the formula W + (alpha / r) B A of an adapter, or its base model.
_OTHER_KINDS = (
    "use_dora",
    "use_rslora",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
)
# Initialisations that change the base weights, so that the adapter does not fit the published weights.
_CHANGED_BASES = ("pissa", "olora", "corda", "loftq")


def strengths_config(layers: Mapping[str, LoRALinear], ranks: Mapping[str, int] | None = None) -> dict[str, Any]:
    """Rank, alpha and dropout of each module as PEFT's config holds them.

    The most frequent combination of rank, alpha and dropout gives the values of the whole adapter. Modules with another
    rank or alpha are listed by their full names in ``rank_pattern`` and ``alpha_pattern``. PEFT has a single dropout
    for all modules; dropout matters in training only.

    Args:
        layers: name in the published model -> linear layer with an adapter.
        ranks: rank of the written adapters, if a published layer holds several of ours, as many times their rank;
            alpha grows with it. None: the layers' own.

    Raises:
        ModelError: if there are no layers.
    """
    if not layers:
        raise ModelError("the model has no adapters")
    written = {name: layer.rank for name, layer in layers.items()} | dict(ranks or {})
    kinds = {
        name: (written[name], _number(layer.alpha * written[name] / layer.rank), _dropout(layer))
        for name, layer in layers.items()
    }
    rank, alpha, dropout = Counter(kinds.values()).most_common(1)[0][0]
    config: dict[str, Any] = {"r": rank, "lora_alpha": alpha, "lora_dropout": dropout}
    ranks = {name: kind[0] for name, kind in kinds.items() if kind[0] != rank}
    alphas = {name: kind[1] for name, kind in kinds.items() if kind[1] != alpha}
    return config | ({"rank_pattern": ranks} if ranks else {}) | ({"alpha_pattern": alphas} if alphas else {})


def _number(alpha: float) -> int | float:
    return int(alpha) if float(alpha).is_integer() else float(alpha)


def _dropout(layer: LoRALinear) -> float:
    return float(getattr(layer.dropout, "p", 0.0))


def read_config(folder: Path) -> dict[str, Any]:
    """The config of a plain LoRA adapter.

    Args:
        folder: holds ``adapter_config.json``.

    Raises:
        ModelError: if the file cannot be read or the adapter is of another kind; the message names the kind.
    """
    file = folder / CONFIG_NAME
    refuse_special(file, ModelError)
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read ({error}); give the folder of a PEFT adapter") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ModelError(f"{file} is not the config of a LoRA adapter")
    special = [key for key in _OTHER_KINDS if config.get(key)]
    if config.get("bias", "none") != "none":
        special.append("bias")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(_CHANGED_BASES):
        special.append(f"init_lora_weights={start}")
    if special:
        raise ModelError(f"{folder}: an adapter with {', '.join(special)} cannot be read; merge it in PEFT")
    return config


def strength_of(config: Mapping[str, Any], module: str, folder: Path) -> Strength:
    """Rank and alpha of one module, looked up as PEFT does: the first pattern that matches the end of its name.

    Args:
        config: config of the adapter.
        module: its name in the model that the adapter was trained on.
        folder: for messages.

    Raises:
        ModelError: if a pattern is not a regular expression, or rank or alpha is not a number.
    """
    try:
        rank = _lookup(config.get("rank_pattern") or {}, module, config.get("r"))
        alpha = _lookup(config.get("alpha_pattern") or {}, module, config.get("lora_alpha"))
        return Strength(int(rank), float(alpha))
    except (re.error, TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"{folder / CONFIG_NAME}: rank and alpha of {module} cannot be read ({error})") from error


def _lookup(patterns: Mapping[str, Any], module: str, otherwise: Any) -> Any:
    if module in patterns:  # the usual case, and always the case in files that medtune wrote
        return patterns[module]
    matches = (value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", module))
    return next(matches, otherwise)
