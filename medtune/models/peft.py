"""Adapters in PEFT's format, written and read without PEFT: it refuses the torchao that torchtune needs."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from medtune.data.writing import write_whole
from medtune.errors import ModelError
from medtune.models.adapter_names import PREFIX
from medtune.models.adapters import adapted_layers
from medtune.models.family import ModelFamily, StateDict
from medtune.models.names import expected_shapes, is_adapter_key
from medtune.models.weights import save_tensors

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
_SIDES = (".lora_A.weight", ".lora_B.weight")
# What changes an adapter's formula beyond W + (alpha / r) B A.
_UNREADABLE = ("use_dora", "use_rslora", "lora_bias", "modules_to_save", "rank_pattern", "alpha_pattern")


def save_peft(adapters: StateDict, model: nn.Module, out_dir: str | Path, base: str | None) -> Path:
    """Write ``adapter_model.safetensors`` and ``adapter_config.json``, as ``PeftModel.from_pretrained`` reads them.

    The config names every adapted module in full, because self- and cross-attention cannot be told apart by the last
    part of a name. It is written last: a folder without it is not an adapter.

    Args:
        adapters: every adapter tensor of the model by state-dict key, on the CPU, and nothing else.
        model: gives family, rank, alpha and dropout; may live on the meta device.
        out_dir: made if need be.
        base: path or hub name of the base weights, which goes into the config.

    Returns:
        ``out_dir``.

    Raises:
        ModelError: if the model has no adapters, the family has no PEFT layout, or tensors are missing or left over.
    """
    to_peft, _ = _layout(model)
    _check(adapters, model, "the state")
    options = _options(model)
    tensors = to_peft(adapters)
    modules = {
        name.removeprefix(PREFIX).removesuffix(side) for name in tensors for side in _SIDES if name.endswith(side)
    }
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "bias": "none",
        "fan_in_fan_out": False,
        "target_modules": sorted(modules),
        **options,
    }
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    (out / CONFIG_NAME).unlink(missing_ok=True)
    save_tensors(tensors, out / WEIGHTS_NAME)
    write_whole(out / CONFIG_NAME, json.dumps(config, indent=2) + "\n")
    return out


def load_peft(folder: str | Path, model: nn.Module) -> StateDict:
    """Read an adapter folder of PEFT's, whoever wrote it, in torchtune's names.

    Args:
        folder: holds ``adapter_config.json`` and ``adapter_model.safetensors``.
        model: the model that the adapters are for, built with adapters in the same places; may live on the meta device.

    Returns:
        State-dict key -> tensor, on the CPU, ready for ``load_state_dict(..., strict=False)``.

    Raises:
        ModelError: if files are missing or torn, the adapter is of a kind that the model cannot hold, its rank or
            alpha is another, or tensors are missing or left over.
    """
    _, from_peft = _layout(model)
    folder = Path(folder)
    _check_config(_read_config(folder / CONFIG_NAME), _options(model), folder)
    file = folder / WEIGHTS_NAME
    try:
        # beside an adapter of lm_head PEFT also saves the frozen weight that it stands on
        tensors = {name: tensor for name, tensor in load_file(file).items() if ".base_layer." not in name}
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} cannot be read ({error}); pickled adapters are not read") from error
    state = from_peft(tensors)
    _check(state, model, str(folder))
    return state


def _layout(model: nn.Module) -> tuple[Any, Any]:
    family: ModelFamily = model.family  # type: ignore[assignment]
    if family.adapters_to_peft is None or family.adapters_from_peft is None:
        raise ModelError(f"{family.name} has no known layout in PEFT's format; merge its adapters instead")
    return family.adapters_to_peft, family.adapters_from_peft


def _options(model: nn.Module) -> dict[str, Any]:
    """Rank, alpha and dropout, which the builders give every adapter alike."""
    layers = adapted_layers(model).values()
    found = {(layer.rank, float(layer.alpha), float(getattr(layer.dropout, "p", 0.0))) for layer in layers}
    if len(found) != 1:
        raise ModelError("the model has no adapters" if not found else f"adapters of several kinds: {sorted(found)}")
    rank, alpha, dropout = found.pop()
    return {"r": rank, "lora_alpha": int(alpha) if alpha.is_integer() else alpha, "lora_dropout": dropout}


def _check(adapters: StateDict, model: nn.Module, where: str) -> None:
    expected = {key: size for key, size in expected_shapes(model).items() if is_adapter_key(key)}
    missing, extra = sorted(expected.keys() - adapters.keys()), sorted(adapters.keys() - expected.keys())
    if missing or extra:
        raise ModelError(
            f"{where} does not hold the model's adapters: {len(missing)} tensors missing (first: {missing[:1]}), "
            f"{len(extra)} that the model has no adapter for (first: {extra[:1]}); check lora_parts, "
            "lora_attn_modules, apply_lora_to_mlp and apply_lora_to_output"
        )
    wrong = [key for key, size in expected.items() if torch.Size(adapters[key].shape) != size]
    if wrong:
        raise ModelError(
            f"{where}: {wrong[0]} is {list(adapters[wrong[0]].shape)}, the model has {list(expected[wrong[0]])}"
        )


def _read_config(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read ({error}); give the folder of a PEFT adapter") from error
    if not isinstance(content, dict) or content.get("peft_type") != "LORA":
        raise ModelError(f"{file} is not the config of a LoRA adapter")
    return content


def _check_config(config: dict[str, Any], options: dict[str, Any], folder: Path) -> None:
    special = [key for key in _UNREADABLE if config.get(key)]
    if special or config.get("bias", "none") != "none":
        raise ModelError(f"{folder}: an adapter with {', '.join(special or ['bias'])} cannot be read; merge it in PEFT")
    for key, builder in (("r", "lora_rank"), ("lora_alpha", "lora_alpha")):
        if config.get(key) != options[key]:
            raise ModelError(
                f"{folder}: the adapter has {key}={config.get(key)}, the model {options[key]}; set model.{builder}"
            )
