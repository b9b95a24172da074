"""Qwen2.5-VL from a downloaded folder, of any size: 3B, 7B, 32B, 72B and models tuned from them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from medtune.models.common.chat_template import chatml
from medtune.models.common.folder import FolderFamily, LoraArguments, embeddings_are_tied
from medtune.models.common.folder_tokenizer import folder_tokenizer, image_normalisation
from medtune.models.qwen2_5_vl._component_builders import LoraOptions, qwen2_5_vl
from medtune.models.qwen2_5_vl._config import shape_from_config
from medtune.models.qwen2_5_vl._images import CLIP_MEAN, CLIP_STD
from medtune.models.qwen2_5_vl._shape import Qwen2_5VLShape
from medtune.models.qwen2_5_vl._transform import MAX_PIXELS, MIN_PIXELS, SYSTEM, Qwen2_5VLTransform, make_transform
from medtune.models.qwen2_5_vl._vlm import Qwen2_5VL


def _shape(config: dict[str, Any], folder: Path) -> Qwen2_5VLShape:
    """The shape in config.json; the files tell whether embeddings are tied."""
    shape = shape_from_config(config)
    return replace(shape, tied=embeddings_are_tied(folder, shape.tied))


def _build(
    name: str,
    shape: Qwen2_5VLShape,
    config: dict[str, Any],
    lora: LoraArguments | None,
    double_quant: bool = True,
) -> Qwen2_5VL:
    options = None if lora is None else LoraOptions.from_arguments({**lora, "double_quant": double_quant})
    return qwen2_5_vl(name, shape, lora=options)


def _transform(
    folder: Path,
    shape: Qwen2_5VLShape,
    config: dict[str, Any],
    max_seq_len: int = 4096,
    min_pixels: int = MIN_PIXELS,
    max_pixels: int = MAX_PIXELS,
    system: str | None = None,
    supervise_header: bool = False,
) -> Qwen2_5VLTransform:
    tokenizer = folder_tokenizer(folder, shape.vocab_size)
    template = replace(chatml(SYSTEM if system is None else system), image_separator="")
    normalisation = image_normalisation(folder, CLIP_MEAN, CLIP_STD)
    return make_transform(
        tokenizer, template, shape, min_pixels, max_pixels, max_seq_len, supervise_header, normalisation=normalisation
    )


def _describe(shape: Qwen2_5VLShape) -> str:
    ties = "tied embeddings" if shape.tied else "an output layer of its own"
    return (
        f"decoder Qwen2.5, {shape.layers} layers, {shape.dim} wide, {shape.heads} heads, {shape.kv_heads} key/value "
        f"heads, {ties}; "
        f"images of any size, a token per {shape.block_size} x {shape.block_size} pixels"
    )


FAMILY = FolderFamily("Qwen2.5-VL", _shape, _build, _transform, _describe)
