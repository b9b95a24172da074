"""LLaVA from a downloaded folder: CLIP ViT-L/14 and any Llama, Mistral or Qwen2 decoder, in both layouts."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

from medtune.errors import ModelError
from medtune.models.common.chat_formats import huatuo, mistral
from medtune.models.common.chat_template import VICUNA_SYSTEM, ChatTemplate, chatml, llama3, vicuna
from medtune.models.common.early_fusion import EarlyFusionVLM
from medtune.models.common.early_transform import EarlyFusionTransform
from medtune.models.common.folder import FolderFamily, LoraArguments, embeddings_are_tied
from medtune.models.common.folder_tokenizer import (
    chat_template_of,
    eos_token_of,
    folder_tokenizer,
    image_normalisation,
    knows,
)
from medtune.models.common.tokenizer import TextTokenizer
from medtune.models.llava._component_builders import LoraOptions, llava_vlm
from medtune.models.llava._config import authors_layout, shape_from_config, tie_flag
from medtune.models.llava._images import CLIP_MEAN, CLIP_STD, SquareMode, SquareTiler
from medtune.models.llava._shape import Layout, LlavaShape
from medtune.models.llava._transform import check_image_token, llava_transform

Chat = Literal["vicuna", "mistral", "huatuo", "chatml", "llama3"]
_NAMES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2"}
# A piece of text that only this format's template has.
_MARKS: tuple[tuple[str, Chat], ...] = (
    ("[INST]", "mistral"),
    ("<|im_start|>", "chatml"),
    ("<|start_header_id|>", "llama3"),
    ("<|assistant|>", "huatuo"),
    ("ASSISTANT:", "vicuna"),
)
_OF_AUTHORS: dict[str, Chat] = {"llama": "vicuna", "mistral": "mistral", "qwen2": "huatuo"}


def _shape(config: dict[str, Any], folder: Path) -> LlavaShape:
    return replace(shape_from_config(config), tied=embeddings_are_tied(folder, tie_flag(config)))


def _build(
    name: str, shape: LlavaShape, config: dict[str, Any], lora: LoraArguments | None, layout: Layout | None = None
) -> EarlyFusionVLM:
    options = None if lora is None else LoraOptions.from_arguments(lora)
    return llava_vlm(name, shape, layout=layout or ("original" if authors_layout(config) else "hf"), lora=options)


def _chat(folder: Path, shape: LlavaShape, config: dict[str, Any], tokenizer: TextTokenizer) -> Chat:
    """The chat format of a folder: by its chat template, or for the authors' layout by its decoder."""
    if authors_layout(config):
        return _OF_AUTHORS[shape.decoder]
    written = chat_template_of(folder)
    for mark, name in _MARKS:
        if written is not None and mark in written:
            return name
    if written is None and knows(tokenizer, "<|start_header_id|>"):
        return "llama3"
    if written is None and shape.decoder != "qwen2":
        return _OF_AUTHORS[shape.decoder]
    raise ModelError(
        f"{folder} does not tell its chat format ({'no' if written is None else 'an unknown'} chat template); set "
        f"transform.chat to one of {', '.join(get_args(Chat))}"
    )


def _template(chat: Chat, folder: Path, system: str | None) -> ChatTemplate:
    if chat == "vicuna":
        return replace(vicuna(), default_system=VICUNA_SYSTEM if system is None else system)
    if chat == "mistral":
        return mistral(system or "")
    if chat == "huatuo":
        return huatuo(system or "", end=eos_token_of(folder, "<|endoftext|>"))
    return chatml(system or "") if chat == "chatml" else replace(llama3(), default_system=system or "")


def _transform(
    folder: Path,
    shape: LlavaShape,
    config: dict[str, Any],
    max_seq_len: int = 2048,
    resize: SquareMode = "pad",
    system: str | None = None,
    chat: Chat | None = None,
    supervise_header: bool = False,
) -> EarlyFusionTransform:
    tokenizer = folder_tokenizer(folder, shape.vocab_size)
    if chat is not None and chat not in get_args(Chat):
        raise ModelError(f"transform.chat must be one of {', '.join(get_args(Chat))}, got {chat!r}")
    if not authors_layout(config):
        check_image_token(tokenizer, shape.image_id, folder)
    found = image_normalisation(folder, CLIP_MEAN, CLIP_STD)
    for given, ours in zip(found, (CLIP_MEAN, CLIP_STD), strict=True):
        if any(abs(a - b) > 1e-4 for a, b in zip(given, ours, strict=True)):
            raise ModelError(f"{folder}: the processor normalises images to {list(given)}, CLIP to {list(ours)}")
    template = _template(chat or _chat(folder, shape, config, tokenizer), folder, system)
    tiler = SquareTiler(shape.image_size, resize)
    return llava_transform(tokenizer, template, shape, tiler, max_seq_len, supervise_header)


def _describe(shape: LlavaShape) -> str:
    tied = ", tied embeddings" if shape.tied else ""
    return (
        f"decoder {_NAMES[shape.decoder]} ({shape.layers} layers, {shape.dim} wide, {shape.heads} heads, "
        f"{shape.kv_heads} key/value heads{tied}), {shape.tokens_per_image} tokens per image of {shape.image_size} "
        "pixels"
    )


FAMILY = FolderFamily("LLaVA", _shape, _build, _transform, _describe)
