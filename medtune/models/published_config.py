"""Compares the ``config.json`` beside weights with what a builder builds, and writes the type of exported tensors."""

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_type_hints

import torch

from medtune.errors import MedtuneError, ModelError
from medtune.models.common.family import ModelFamily
from medtune.models.weight_files import read_json

CONFIG_NAME = "config.json"
_NAMED = 5
# Keys that do not change what the model computes: names, tokens that only a tokenizer uses, limits, initial values,
# what the transform decides, and whether embeddings are tied, which the tensors tell.
_WITHOUT_EFFECT = frozenset({
    "architectures", "bos_token_id", "eos_token_id", "pad_token_id", "max_position_embeddings", "initializer_factor",
    "layer_scale_init_value", "use_flash_attn", "use_mean_pooling", "use_mask_token", "dynamic_image_size",
    "use_thumbnail", "min_dynamic_patch", "max_dynamic_patch", "projection_dim", "image_seq_length", "torch_dtype",
    "dtype", "tie_word_embeddings",
})  # fmt: skip
# The size and normalisation of a classifier's images, and a router's labels, may change when its training goes on.
_MAY_CHANGE = frozenset({"image_size", "mean", "std", "medtune_router"})
_SAME = {"image_token_index": "image_token_id", "attention_heads": "num_attention_heads"}
_ROPE = ("rope_theta", "rope_scaling", "rope_parameters")
_GLOBAL, _LOCAL = "full_attention", "sliding_attention"
_TYPES = ("torch_dtype", "dtype")
# model_type -> what it is, for models that are often tried and have no builder.
WITHOUT_BUILDER = {
    "llava_next": "LLaVA-NeXT (type llava_next) has other image features than LLaVA-1.5",
    "llava_onevision": "LLaVA-OneVision (type llava_onevision) has other image features than LLaVA-1.5",
    "qwen2_vl": "Qwen2-VL (type qwen2_vl) is another model than Qwen2.5-VL",
    "qwen3_vl": "Qwen3-VL (type qwen3_vl) has attention layers of its own",
    "idefics3": "Idefics3 (type idefics3) has an image encoder of its own",
    "gemma3_text": "Gemma 3 without images (type gemma3_text: 270M, 1B and MedGemma 27B text) is no VLM",
    "gemma3n": "Gemma 3n (type gemma3n) has layers and an image encoder of its own",
    "paligemma": "PaliGemma (type paligemma) has Gemma 1 or 2 as its decoder",
    "blip-2": "BLIP-2 (type blip-2) has a Q-Former",
    "instructblip": "InstructBLIP (type instructblip) has a Q-Former",
}
_PACKAGES_WITHOUT_SIZES = ("common", "lora", "mini", "classifier", "task_router")


def check_config(folder: Path, family: ModelFamily) -> None:
    """Compare ``config.json`` with the model that was built; a key that the file does not have is not compared.

    Args:
        folder: the weights' folder; without the file nothing is checked.
        family: of the built model.

    Raises:
        ModelError: if the file describes another model. The message names the differing keys with both values, and the
            builder of this model if there is one.
    """
    file = folder / CONFIG_NAME
    if not file.is_file():
        return
    given = read_json(file)
    quantised = given.get("quantization_config")
    if isinstance(quantised, Mapping):
        method = quantised.get("quant_method", "unknown method")
        raise ModelError(
            f"{folder} holds quantised weights ({method}); take the unquantised model (quantize_base makes it 4-bit "
            "for training)"
        )
    model_type = given.get("model_type")
    if model_type not in (family.model_type, *family.also_reads):
        raise ModelError(
            f"{folder} holds a model of type {model_type!r}, but {family.name} needs {family.model_type!r}"
            f"{_remedy(given)}"
        )
    found = config_differences(given, family)
    if found:
        more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        raise ModelError(
            f"{file} describes another model than {family.name}: {'; '.join(found[:_NAMED])}{more}{_remedy(given)}"
        )


def config_differences(given: Mapping[str, Any], family: ModelFamily) -> list[str]:
    """Keys of a ``config.json`` whose values differ from the built model's, each as ``key is A, the model has B``.

    Args:
        given: contents of the file, in any layout that the family reads.
        family: of the built model.
    """
    theirs = dict(_flat(given))
    found = [_differing(theirs, dict(_flat(ours))) for ours in _layouts(given, family)]
    return min(found, key=len, default=[])


def _differing(theirs: Mapping[str, Any], built: Mapping[str, Any]) -> list[str]:
    return [
        f"{key} is {_shown(theirs[key])}, the model has {_shown(value)}"
        for key, value in built.items()
        if key in theirs and theirs[key] != value
    ]


def is_published(config: Path, family: ModelFamily) -> bool:
    """Whether a ``config.json`` has the layout in which exports are written."""
    given, ours = read_json(config), family.hf_config()
    same_class = given.get("architectures") in (None, ours.get("architectures"))
    return given.get("model_type") == family.model_type and same_class


def with_dtype(config: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """A ``config.json`` that names the type of the written tensors, in every part that names one.

    Args:
        config: contents; not changed.
        dtype: type of all tensors.
    """
    name = str(dtype).removeprefix("torch.")
    found = _retyped(config, name)
    return found if any(key in found for key in _TYPES) else {**found, _TYPES[0]: name}


def _retyped(config: dict[str, Any], name: str) -> dict[str, Any]:
    return {
        key: name if key in _TYPES else _retyped(value, name) if isinstance(value, dict) else value
        for key, value in config.items()
    }


def _layouts(given: Mapping[str, Any], family: ModelFamily) -> list[dict[str, Any]]:
    """The built model's config in the layout of a given one; several where one layout has several spellings."""
    every = [make() for make in (family.hf_config, *family.layouts)]
    for key in ("architectures", "model_type"):
        same = [ours for ours in every if ours.get(key) is not None and ours.get(key) == given.get(key)]
        if same:
            # where one spelling has the decoder's keys at the top and another below text_config
            return [ours for ours in same if _parts(ours) == _parts(given)] or same
    return []


def _parts(config: Mapping[str, Any]) -> set[str]:
    return {key for key, value in config.items() if isinstance(value, Mapping) and key.endswith("_config")}


def _flat(config: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    """Every decisive value by its dotted path, in one spelling."""
    for key, value in config.items():
        name = f"{where}{_SAME.get(key, key)}"
        if key in _ROPE or key in _WITHOUT_EFFECT or (not where and (key == "model_type" or key in _MAY_CHANGE)):
            continue
        if isinstance(value, Mapping) and key.endswith("_config"):
            yield from _flat(value, f"{name}.")
        elif value is not None and not (key == "model_type" and where.startswith("vision")):
            yield name, _plain(value)
    yield from ((f"{where}{key}", value) for key, value in rope_of(config).items())


def rope_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Base and scaling of rotary positions; transformers 5 writes both into ``rope_parameters``.

    Args:
        config: contents of a ``config.json``, or its part for the language model.

    Returns:
        ``rope_theta`` if it is given, and ``rope_scaling``: None if positions are not scaled. Nothing if the config
        says nothing of positions. Where local layers (sliding window) have positions of their own, as in Gemma 3, also
        ``rope_local_base_freq``.
    """
    if not any(config.get(key) is not None for key in _ROPE):
        return {}
    by_kind = config.get("rope_parameters")
    if isinstance(by_kind, Mapping) and isinstance(by_kind.get(_GLOBAL), Mapping):
        local = by_kind.get(_LOCAL)
        base = rope_of({"rope_parameters": local}).get("rope_theta") if isinstance(local, Mapping) else None
        return rope_of({"rope_parameters": by_kind[_GLOBAL]}) | ({} if base is None else {"rope_local_base_freq": base})
    both = {"rope_theta": config.get("rope_theta")}
    for key in ("rope_scaling", "rope_parameters"):
        value = config.get(key)
        both |= dict(value) if isinstance(value, Mapping) else {}
    theta, old_kind = both.pop("rope_theta"), both.pop("type", None)
    kind = both.pop("rope_type", None) or old_kind
    if both.get("mrope_section") is not None:  # transformers 5 writes "default" beside the sections
        kind = "mrope"
    # "dynamic" changes nothing up to max_position_embeddings, the longest text that is allowed
    scaling = None if kind in (None, "default", "dynamic") else {"rope_type": kind, **both}
    return {**({} if theta is None else {"rope_theta": theta}), "rope_scaling": scaling}


def _plain(value: Any) -> Any:
    """A square size as one number; tuples as lists, as JSON has them."""
    if isinstance(value, list | tuple):
        items = [_plain(item) for item in value]
        return items[0] if len(items) == 2 and items[0] == items[1] and isinstance(items[0], int) else items
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _remedy(given: Mapping[str, Any]) -> str:
    model_type = given.get("model_type")
    known = WITHOUT_BUILDER.get(model_type) if isinstance(model_type, str) else None
    if known:
        return f". {known}, for which medtune has no builder; predict can ask it through a backend"
    builder = builder_of(given)
    if builder:
        return f"; set model._component_ to {builder} (or its lora_ form) for these weights"
    from medtune.models.from_checkpoint import FAMILIES  # it imports this module

    if isinstance(model_type, str) and model_type in FAMILIES:
        return "; set model._component_ to medtune.models.from_checkpoint (or its lora_ form), which reads config.json"
    return ". No builder of published sizes builds it; check the builder's arguments and the path"


def builder_of(given: Mapping[str, Any]) -> str | None:
    """Dotted path of the builder without arguments whose model a ``config.json`` describes.

    Of several that compute the same, it is one whose exports have the file's layout: InternVL2.5-1B and InternVL3-1B
    differ in their weights alone.
    """
    for path, family in sorted(_families(), key=lambda entry: given.get("model_type") != entry[1].model_type):
        if given.get("model_type") not in (family.model_type, *family.also_reads):
            continue
        if _layouts(given, family) and not config_differences(given, family):
            return path
    return None


@functools.cache
def _families() -> tuple[tuple[str, ModelFamily], ...]:
    """Each builder of a published model, built without storage."""
    found = []
    for path, builder in _builders():
        try:
            with torch.device("meta"):
                found.append((path, builder().family))
        except MedtuneError:
            continue
    return tuple(found)


def _builders() -> Iterator[tuple[str, Any]]:
    """Builders of published models: functions of the families' packages that need no argument and add no adapters."""
    import medtune.models

    for entry in pkgutil.iter_modules(medtune.models.__path__):
        if not entry.ispkg or entry.name in _PACKAGES_WITHOUT_SIZES:
            continue
        module = importlib.import_module(f"medtune.models.{entry.name}")
        for name in getattr(module, "__all__", ()):
            found = getattr(module, name)
            if inspect.isfunction(found) and not name.startswith(("lora_", "qlora_")) and _builds_model(found):
                yield f"{module.__name__}.{name}", found


def _builds_model(function: Any) -> bool:
    returned = get_type_hints(function).get("return")
    needs = [p for p in inspect.signature(function).parameters.values() if p.default is inspect.Parameter.empty]
    return not needs and isinstance(returned, type) and issubclass(returned, torch.nn.Module)
