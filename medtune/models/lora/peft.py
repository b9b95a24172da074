"""Adapters in PEFT's format, written and read without PEFT, which rejects torchtune's version of torchao."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from medtune.data.opening import refuse_special
from medtune.data.writing import write_whole
from medtune.errors import ModelError
from medtune.models.common.family import ModelFamily, StateDict
from medtune.models.common.names import expected_shapes, is_adapter_key
from medtune.models.lora.merge import Adapter, Strength, adapted_layers
from medtune.models.lora.names import PREFIX
from medtune.models.lora.peft_config import CONFIG_NAME, read_config, strength_of, strengths_config
from medtune.models.lora.peft_whole import whole_from_peft, whole_to_peft
from medtune.models.weights import save_tensors

WEIGHTS_NAME = "adapter_model.safetensors"
_SIDES = (".lora_A.weight", ".lora_B.weight")
_OUR_SIDES = (".lora_a.weight", ".lora_b.weight")


def save_peft(
    adapters: StateDict, model: nn.Module, out_dir: str | Path, base: str | None, *, whole: StateDict | None = None
) -> Path:
    """Write ``adapter_model.safetensors`` and ``adapter_config.json``, as ``PeftModel.from_pretrained`` reads them.

    The config names every adapted module in full, because the last part of a name does not distinguish self-attention
    from cross-attention. It is written last: a folder without it is not an adapter.

    Args:
        adapters: every adapter tensor of the model by state-dict key, on the CPU, and nothing else.
        model: gives family, rank, alpha and dropout of each adapter; may live on the meta device.
        out_dir: created if needed.
        base: path or hub name of the base weights, which goes into the config.
        whole: tensors that were fully trained in addition to the adapters, for ``modules_to_save``.

    Returns:
        ``out_dir``.

    Raises:
        ModelError: if the model has no adapters, the family has no PEFT layout, tensors are missing or left over, or
            PEFT cannot store ``whole``.
    """
    return write_peft(peft_files(adapters, model, base, whole=whole), out_dir)


def peft_files(
    adapters: StateDict, model: nn.Module, base: str | None, *, whole: StateDict | None = None
) -> tuple[StateDict, dict[str, Any]]:
    """The tensors and the config that :func:`save_peft` writes; arguments and errors are the same."""
    to_peft, _ = _layout(model.family)  # type: ignore[arg-type]
    layers = adapted_layers(model)
    if not layers:
        raise ModelError("the model has no adapters")
    _check(adapters, model, "the state")
    tensors = to_peft(adapters)
    # layer by layer, because a published layer may hold several of ours
    pairs = {prefix: {f"{prefix}{side}": adapters[f"{prefix}{side}"] for side in _OUR_SIDES} for prefix in layers}
    names = {prefix: _module(next(iter(to_peft(pair)))) for prefix, pair in pairs.items()}
    ranks = {name: tensors[f"{PREFIX}{name}{_SIDES[0]}"].shape[0] for name in names.values()}
    saved, modules = whole_to_peft(whole or {}, model, names.values())
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "bias": "none",
        "fan_in_fan_out": False,
        "target_modules": sorted(ranks),
        **strengths_config({names[prefix]: layer for prefix, layer in layers.items()}, ranks),
        **({"modules_to_save": modules} if modules else {}),
    }
    return {**tensors, **saved}, config


def write_peft(files: tuple[StateDict, dict[str, Any]], out_dir: str | Path) -> Path:
    """Write what :func:`peft_files` returned, the config last."""
    tensors, config = files
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    (out / CONFIG_NAME).unlink(missing_ok=True)
    save_tensors(tensors, out / WEIGHTS_NAME)
    write_whole(out / CONFIG_NAME, json.dumps(config, indent=2) + "\n")
    return out


def read_peft(folder: str | Path, family: ModelFamily) -> Adapter:
    """Read an adapter folder in PEFT's format, written by any tool, with adapters anywhere in the model.

    Args:
        folder: holds ``adapter_config.json`` and ``adapter_model.safetensors``.
        family: family of the model that the adapter belongs to.

    Raises:
        ModelError: if files are missing or damaged, the adapter is not a plain LoRA adapter, or a tensor does not
            belong to this model.
    """
    _, from_peft = _layout(family)
    folder = Path(folder)
    config = read_config(folder)
    file = folder / WEIGHTS_NAME
    refuse_special(file, ModelError)
    try:
        # with an adapter on lm_head PEFT also saves the frozen weight that it adapts
        tensors = {name: tensor for name, tensor in load_file(file).items() if ".base_layer." not in name}
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} cannot be read ({error}); pickled adapters are not read") from error
    saved = {name: tensor for name, tensor in tensors.items() if not name.endswith(_SIDES)}
    if not config.get("modules_to_save"):
        saved = {}
    elif not saved:
        raise ModelError(f"{file} holds no tensor of modules_to_save={config['modules_to_save']}")
    adapters = {name: tensor for name, tensor in tensors.items() if name not in saved}
    state = from_peft(adapters)
    return Adapter(state, _strengths(adapters, from_peft, config, folder), whole_from_peft(saved, family))


def load_peft(folder: str | Path, model: nn.Module) -> StateDict:
    """Read an adapter folder in PEFT's format for a model that was built with adapters on the same layers.

    Args:
        folder: holds ``adapter_config.json`` and ``adapter_model.safetensors``.
        model: the model that the adapters are for; may live on the meta device.

    Returns:
        State-dict key -> tensor, on the CPU, ready for ``load_state_dict(..., strict=False)``: the adapters and
        the fully trained tensors.

    Raises:
        ModelError: if files are missing or damaged, the model cannot hold this kind of adapter, a rank or an alpha
            differs, or tensors are missing or left over.
    """
    adapter = read_peft(folder, model.family)  # type: ignore[arg-type]
    _check_names(adapter.state, model, str(folder))
    _check_strengths(adapter.strengths, model, str(folder))
    _check_shapes({**adapter.state, **adapter.whole}, expected_shapes(model), str(folder))
    return {**adapter.state, **adapter.whole}


def _strengths(
    adapters: StateDict, from_peft: Callable[[StateDict], StateDict], config: dict[str, Any], folder: Path
) -> dict[str, Strength]:
    """Rank and alpha of each of our layers; of a published layer that holds several, the share of each."""
    strengths = {}
    for name in (name for name in adapters if name.endswith(_SIDES[0])):
        module = _module(name)
        pair = {key: adapters[key] for key in (name, name.removesuffix(_SIDES[0]) + _SIDES[1]) if key in adapters}
        given = strength_of(config, module, folder)
        for key, tensor in from_peft(pair).items():
            if key.endswith(_OUR_SIDES[0]):
                share = tensor.shape[0] / adapters[name].shape[0]
                own = Strength(round(given.rank * share), given.alpha * share)
                strengths[key.removesuffix(_OUR_SIDES[0])] = own
    return strengths


def _module(name: str) -> str:
    plain = name.removeprefix(PREFIX)
    for side in _SIDES:
        plain = plain.removesuffix(side)
    return plain


def _layout(family: ModelFamily) -> tuple[Any, Any]:
    if family.adapters_to_peft is None or family.adapters_from_peft is None:
        raise ModelError(f"{family.name} has no known layout in PEFT's format; merge its adapters instead")
    return family.adapters_to_peft, family.adapters_from_peft


def _check(adapters: StateDict, model: nn.Module, where: str) -> None:
    _check_names(adapters, model, where)
    _check_shapes(adapters, expected_shapes(model), where)


def _check_names(adapters: StateDict, model: nn.Module, where: str) -> None:
    expected = {key for key in expected_shapes(model) if is_adapter_key(key)}
    missing, extra = sorted(expected - adapters.keys()), sorted(adapters.keys() - expected)
    if missing or extra:
        raise ModelError(
            f"{where} does not hold the model's adapters: {len(missing)} tensors missing (first: {missing[:1]}), "
            f"{len(extra)} that the model has no adapter for (first: {extra[:1]}); check lora_parts, "
            "lora_attn_modules, apply_lora_to_mlp and apply_lora_to_output"
        )


def _check_shapes(state: StateDict, expected: Mapping[str, torch.Size], where: str) -> None:
    for key, tensor in state.items():
        if key not in expected or torch.Size(tensor.shape) != expected[key]:
            have = list(expected[key]) if key in expected else "no such tensor"
            raise ModelError(f"{where}: {key} is {list(tensor.shape)}, the model has {have}")


def _check_strengths(strengths: Mapping[str, Strength], model: nn.Module, where: str) -> None:
    for prefix, layer in adapted_layers(model).items():
        given, expected = strengths[prefix], Strength(layer.rank, float(layer.alpha))
        for name, key, builder in (("rank", "r", "lora_rank"), ("alpha", "lora_alpha", "lora_alpha")):
            a, b = getattr(given, name), getattr(expected, name)
            if a != b:
                raise ModelError(
                    f"{where}: the adapter has {key}={a:g}, the model {b:g}; set model.{builder}, or what lora_parts "
                    f"says of {prefix}"
                )
