"""InternVL from a downloaded folder: any size with InternViT-300M, in both layouts."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from medtune.models.common.chat_template import llama3
from medtune.models.common.early_fusion import EarlyFusionVLM
from medtune.models.common.early_transform import EarlyFusionTransform
from medtune.models.common.folder import FolderFamily, LoraArguments, embeddings_are_tied
from medtune.models.common.folder_tokenizer import folder_tokenizer, has_token, image_normalisation, knows
from medtune.models.internvl._component_builders import LoraOptions, internvl_vlm
from medtune.models.internvl._config import MODEL_TYPES, shape_from_config, tie_flag
from medtune.models.internvl._images import IMAGENET_MEAN, IMAGENET_STD, DynamicTiler
from medtune.models.internvl._shape import InternVLShape, Layout, Template
from medtune.models.internvl._transform import IMAGE_CONTEXT, internvl_transform, template_of

_NAMES = {"internlm2": "InternLM2", "qwen2": "Qwen2 or Qwen2.5"}


def _shape(config: dict[str, Any], folder: Path) -> InternVLShape:
    """The shape in config.json; the files tell whether embeddings are tied, the tokenizer which token is an image."""
    shape = shape_from_config(config)
    shape = replace(shape, tied=embeddings_are_tied(folder, tie_flag(config)))
    if "image_token_id" in config:
        return shape
    found = has_token(folder, IMAGE_CONTEXT)
    return shape if found is None else replace(shape, image_id=found)


def _layout(config: dict[str, Any]) -> Layout:
    return "hf" if config.get("model_type") == MODEL_TYPES["hf"] else "original"


def _build(
    name: str,
    shape: InternVLShape,
    config: dict[str, Any],
    lora: LoraArguments | None,
    layout: Layout | None = None,
    double_quant: bool = True,
) -> EarlyFusionVLM:
    options = None if lora is None else LoraOptions.from_arguments({**lora, "double_quant": double_quant})
    return internvl_vlm(name, shape, layout=layout or _layout(config), lora=options)


def _transform(
    folder: Path,
    shape: InternVLShape,
    config: dict[str, Any],
    max_seq_len: int = 4096,
    max_num_tiles: int = 6,
    system: str | None = None,
    chat: Template | None = None,
    supervise_header: bool = False,
) -> EarlyFusionTransform:
    tokenizer = folder_tokenizer(folder, shape.vocab_size)
    mean, std = image_normalisation(folder, IMAGENET_MEAN, IMAGENET_STD)
    tiler = DynamicTiler(
        shape.image_size, max_num_tiles, thumbnail=config.get("use_thumbnail", True) is not False, mean=mean, std=std
    )
    if knows(tokenizer, IMAGE_CONTEXT) or not knows(tokenizer, "<|start_header_id|>"):
        template = template_of(chat or shape.chat, tokenizer, system)
        return internvl_transform(tokenizer, template, shape, tiler, max_seq_len, supervise_header)
    return internvl_transform(
        tokenizer,
        replace(llama3(), default_system=system or ""),
        shape,
        tiler,
        max_seq_len,
        supervise_header,
        bare=True,
    )


def _describe(shape: InternVLShape) -> str:
    tied = ", tied embeddings" if shape.tied else ""
    return (
        f"decoder {_NAMES[shape.decoder]} ({shape.layers} layers, {shape.dim} wide, {shape.heads} heads, "
        f"{shape.kv_heads} key/value heads{tied}), {shape.tokens_per_tile} tokens per tile of {shape.image_size} "
        "pixels"
    )


FAMILY = FolderFamily("InternVL", _shape, _build, _transform, _describe)
