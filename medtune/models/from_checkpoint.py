"""Builds a model and its transform from a downloaded folder alone: its config.json, tokenizer and processor files.

A family enters here with one line of :data:`FAMILIES`: the ``model_type`` of its config.json, and the module whose
``FAMILY`` is a :class:`medtune.models.common.folder.FolderFamily`. That object turns config.json into the family's
shape (``shape_from_config``), and builds the model and the transform from the shape.
"""

import importlib
import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from medtune.config import nearest
from medtune.errors import ModelError
from medtune.models.common.folder import FolderFamily
from medtune.models.lora.options import ATTENTION, LoraParts
from medtune.models.published_config import CONFIG_NAME, WITHOUT_BUILDER, config_differences
from medtune.models.weight_files import read_json, weight_files

FAMILIES: dict[str, str] = {
    "gemma3": "medtune.models.gemma3._folder",
    "internvl": "medtune.models.internvl._folder",
    "internvl_chat": "medtune.models.internvl._folder",
    "llava": "medtune.models.llava._folder",
    "llava_llama": "medtune.models.llava._folder",
    "llava_mistral": "medtune.models.llava._folder",
    "llava_qwen2": "medtune.models.llava._folder",
    "mllama": "medtune.models.llama3_2_vision._folder",
    "qwen2_5_vl": "medtune.models.qwen2_5_vl._folder",
}
"""``model_type`` of config.json -> module that has the family's ``FAMILY``; imported when such a folder is opened."""

_NAMED = 5
_OTHERWISE = "predict can ask it through a backend (predict/transformers_local, predict/openai_server)"


def family_of(checkpoint: str | Path) -> tuple[FolderFamily, Any, dict[str, Any]]:
    """Which family a folder holds.

    Args:
        checkpoint: a downloaded folder, or the exported weights of a run.

    Returns:
        The family, the model's shape, and the contents of config.json.

    Raises:
        ModelError: if the folder is missing, is not a model's, holds pickled or quantised weights only, or a model that
            no family covers. The message says what it holds and what to do.
    """
    folder = Path(checkpoint)
    file = folder / CONFIG_NAME
    if not file.is_file():
        weight_files(folder)  # says what a folder that is no download holds instead
        raise ModelError(
            f"{folder} has no {CONFIG_NAME}, so nothing tells which model its weights are; download the whole folder, "
            "or name a builder of this model (docs/models.md)"
        )
    if not any(folder.glob("*.safetensors")) and any(folder.glob("*.bin")):
        weight_files(folder)
    config = read_json(file)
    family = _family(config, folder)
    if isinstance(config.get("quantization_config"), dict):
        method = config["quantization_config"].get("quant_method", "unknown method")
        raise ModelError(
            f"{folder} holds quantised weights ({method}); take the unquantised model (medtune.models."
            "qlora_from_checkpoint makes it 4-bit for training)"
        )
    return family, family.shape(config, folder), config


def _family(config: dict[str, Any], folder: Path) -> FolderFamily:
    model_type = config.get("model_type")
    if isinstance(model_type, str) and model_type in FAMILIES:
        found: FolderFamily = importlib.import_module(FAMILIES[model_type]).FAMILY
        return found
    if isinstance(model_type, str) and model_type in WITHOUT_BUILDER:
        raise ModelError(f"{folder}: {WITHOUT_BUILDER[model_type]}, for which medtune has no builder; {_OTHERWISE}")
    what = f"a model of type {model_type!r}" if isinstance(model_type, str) else "a config.json without model_type"
    raise ModelError(f"{folder} holds {what}; medtune builds {', '.join(FAMILIES)}. If it is a VLM, {_OTHERWISE}")


def from_checkpoint(checkpoint: str, **options: Any) -> Any:
    """The model of a downloaded folder, every parameter trainable until a recipe freezes parts.

    Args:
        checkpoint: the folder, with config.json.
        options: further arguments of the family: ``layout`` (InternVL, LLaVA; the folder's own by default),
            ``max_num_tiles``, ``encoder_mode``, ``pad_tiles``, ``hf_rows`` (Llama-3.2-Vision).

    Raises:
        ModelError: see :func:`family_of`; or if config.json names values that the family's layers do not compute.
    """
    return _build(checkpoint, None, options)


def lora_from_checkpoint(
    checkpoint: str,
    lora_attn_modules: tuple[str, ...] | list[str] = ATTENTION,
    apply_lora_to_mlp: bool = True,
    apply_lora_to_output: bool = False,
    lora_rank: int = 16,
    lora_alpha: float = 32.0,
    lora_dropout: float = 0.0,
    quantize_base: bool = False,
    lora_parts: LoraParts = ("decoder",),
    **options: Any,
) -> Any:
    """The model of a downloaded folder with low-rank adapters, the only trainable parameters until a recipe names more.

    Args:
        checkpoint: the folder, with config.json.
        lora_attn_modules: some of ``q_proj``, ``k_proj``, ``v_proj``, ``output_proj``.
        apply_lora_to_mlp: adapters in the MLPs too.
        apply_lora_to_output: adapters on the decoder's output layer too.
        lora_rank: rank of each adapter.
        lora_alpha: scale of each adapter, divided by its rank.
        lora_dropout: dropout before each adapter.
        quantize_base: keep the linear layers of adapted parts as NF4 (QLoRA).
        lora_parts: the adapted parts, or a mapping from a part to the options that differ there (docs/models.md).
        options: see :func:`from_checkpoint`; also ``double_quant`` (InternVL, Qwen2.5-VL).

    Raises:
        ModelError: see :func:`from_checkpoint`.
    """
    lora = {
        "lora_attn_modules": lora_attn_modules,
        "apply_lora_to_mlp": apply_lora_to_mlp,
        "apply_lora_to_output": apply_lora_to_output,
        "lora_rank": lora_rank,
        "lora_alpha": lora_alpha,
        "lora_dropout": lora_dropout,
        "quantize_base": quantize_base,
        "lora_parts": lora_parts,
    }
    return _build(checkpoint, lora, options)


qlora_from_checkpoint = partial(lora_from_checkpoint, quantize_base=True)
qlora_from_checkpoint.__doc__ = (
    "The model of a downloaded folder, adapters on an NF4 base: see ``lora_from_checkpoint``."
)


def from_checkpoint_transform(
    path: str, max_seq_len: int | None = None, supervise_header: bool = False, **options: Any
) -> Any:
    """The transform of a downloaded folder: its tokenizer, chat format, image tokens and image sizes.

    Args:
        path: the folder, with config.json and its tokenizer's files.
        max_seq_len: maximum number of tokens of one sample; None is the family's default.
        supervise_header: whether the header before an answer is supervised too, as in torchtune's own recipes.
        options: further arguments of the family: ``chat`` (the chat format, where the folder does not tell it),
            ``system``, ``max_num_tiles`` (InternVL, Llama-3.2-Vision), ``resize`` (LLaVA, Llama-3.2-Vision),
            ``min_pixels`` and ``max_pixels`` (Qwen2.5-VL).

    Raises:
        ModelError: see :func:`family_of`; or if the tokenizer is not that of the model.
    """
    family, shape, config = family_of(path)
    given = {"supervise_header": supervise_header, **options}
    if max_seq_len is not None:
        given["max_seq_len"] = max_seq_len
    _check_options(family.transform, given, f"the transform of {path} ({family.title})", taken=3)
    return family.transform(Path(path), shape, config, **given)


def _build(checkpoint: str, lora: dict[str, Any] | None, options: dict[str, Any]) -> Any:
    family, shape, config = family_of(checkpoint)
    folder = Path(checkpoint)
    _check_options(family.build, options, f"{folder} ({family.title})", taken=4)
    model = family.build(folder.resolve().name, shape, config, lora, **options)
    found = config_differences(config, model.family)
    if found:
        more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        raise ModelError(
            f"{folder / CONFIG_NAME} describes a kind of {family.title} that medtune does not build: "
            f"{'; '.join(found[:_NAMED])}{more}; {_OTHERWISE}"
        )
    model.family = replace(model.family, about=f"{family.title}: {family.describe(shape)}")
    return model


def _check_options(function: Callable[..., Any], options: dict[str, Any], what: str, taken: int) -> None:
    """Refuse options that a family's function does not have, by the nearest name of those that it has."""
    known = list(inspect.signature(function).parameters)[taken:]
    for name in options:
        if name not in known:
            raise ModelError(f"{what} takes no {name!r}; {nearest(name, known)}")


def is_known(config: dict[str, Any]) -> bool:
    """Whether a config.json is of a type that :func:`from_checkpoint` may build."""
    model_type = config.get("model_type")
    return isinstance(model_type, str) and model_type in FAMILIES


def component_of(folder: str | Path, config: dict[str, Any]) -> dict[str, Any]:
    """The ``model`` of a config for a folder, with exports in transformers' layout where the family has two.

    Args:
        folder: the folder.
        config: contents of its config.json, of a type in the table.
    """
    has_layouts = "layout" in inspect.signature(_family(config, Path(folder)).build).parameters
    layout = {"layout": "hf"} if has_layouts else {}
    return {"_component_": "medtune.models.from_checkpoint", "checkpoint": str(folder), **layout}
