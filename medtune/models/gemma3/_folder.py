"""Gemma 3 and MedGemma from a downloaded folder, of any size."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from medtune.models.common.early_transform import EarlyFusionTransform
from medtune.models.common.folder import FolderFamily, LoraArguments
from medtune.models.common.folder_tokenizer import image_normalisation
from medtune.models.gemma3._component_builders import Gemma3VLM, LoraOptions, gemma3_vlm
from medtune.models.gemma3._config import shape_from_config
from medtune.models.gemma3._images import SIGLIP_MEAN, SIGLIP_STD
from medtune.models.gemma3._shape import Gemma3Shape
from medtune.models.gemma3._transform import gemma3_tokenizer, transform_of


def _shape(config: dict[str, Any], folder: Path) -> Gemma3Shape:
    return shape_from_config(config)


def _build(
    name: str,
    shape: Gemma3Shape,
    config: dict[str, Any],
    lora: LoraArguments | None,
    max_seq_len: int | None = None,
    double_quant: bool = True,
) -> Gemma3VLM:
    if max_seq_len is not None:
        shape = replace(shape, max_seq_len=max_seq_len)
    options = None if lora is None else LoraOptions.from_arguments({**lora, "double_quant": double_quant})
    return gemma3_vlm(name, shape, lora=options)


def _transform(
    folder: Path,
    shape: Gemma3Shape,
    config: dict[str, Any],
    max_seq_len: int = 4096,
    system: str = "",
    supervise_header: bool = False,
) -> EarlyFusionTransform:
    tokenizer = gemma3_tokenizer(folder, shape.vocab_size)
    mean, std = image_normalisation(folder, SIGLIP_MEAN, SIGLIP_STD)
    return transform_of(tokenizer, shape, max_seq_len, system, supervise_header, mean=mean, std=std)


def _describe(shape: Gemma3Shape) -> str:
    return (
        f"decoder Gemma 3 ({shape.layers} layers, {shape.dim} wide, {shape.heads} heads, {shape.kv_heads} key/value "
        f"heads, a window of {shape.window} tokens in local layers), {shape.tokens_per_image} tokens per image of "
        f"{shape.image_size} pixels"
    )


FAMILY = FolderFamily("Gemma 3", _shape, _build, _transform, _describe)
