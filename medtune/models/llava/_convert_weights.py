"""Converter of LLaVA weights between torchtune's names, the published layout and the authors' layout."""

import torch
from torch import Tensor

from medtune.errors import ModelError
from medtune.models.common.decoder_names import CLIP_MAPS, CLIP_NORMS, decoder_tensors
from medtune.models.common.family import StateDict
from medtune.models.common.names import with_other_beginning
from medtune.models.common.tied import without_copy
from medtune.models.llava._shape import Layout, LlavaShape

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "chat_template.json",
    "chat_template.jinja",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
)
_TOWER, _PROJECTION, _DECODER = "vision_tower.vision_model.", "multi_modal_projector.", "language_model."
# The first match counts: the authors' names, those of a live transformers 5 module, those of CLIP's files.
_OTHER_NAMES = (
    ("model.vision_tower.vision_tower.vision_model.", _TOWER),
    ("model.mm_projector.0.", f"{_PROJECTION}linear_1."),
    ("model.mm_projector.2.", f"{_PROJECTION}linear_2."),
    ("model.vision_tower.", _TOWER),
    ("model.multi_modal_projector.", _PROJECTION),
    ("model.language_model.", f"{_DECODER}model."),
    ("model.", f"{_DECODER}model."),
    ("lm_head.", f"{_DECODER}lm_head."),
    ("vision_model.", _TOWER),
)
_LIVE_PREFIXES = (
    ("model.vision_tower.", _TOWER),
    ("model.multi_modal_projector.", _PROJECTION),
    ("model.language_model.", f"{_DECODER}model."),
    ("lm_head.", f"{_DECODER}lm_head."),
)
_AUTHORS_MARK = "model.mm_projector."
# CLIP's text encoder, and values that follow from the sizes.
_NOT_WEIGHTS = ("text_model.", "text_projection.", "visual_projection.", "logit_scale")
_COMPUTED = (".position_ids", ".rotary_emb.inv_freq")
VOCABULARY = ("decoder.tok_embeddings.weight", "decoder.output.weight")

_HEAD = f"{_DECODER}lm_head.weight"


def disk_name(name: str) -> str:
    """The name in a published file of a tensor that has another name in another layout."""
    for other, disk in _OTHER_NAMES:
        if name.startswith(other):
            return disk + name[len(other) :].removeprefix("vision_model.")
    if name.startswith("vision_tower.") and not name.startswith(_TOWER):
        return _TOWER + name.removeprefix("vision_tower.")  # as transformers 5 writes it
    return name


def live_name(name: str) -> str:
    """The name in a live transformers 5 module of a tensor in a published file; the inverse of :func:`disk_name`."""
    return with_other_beginning(name, ((disk, live) for live, disk in _LIVE_PREFIXES))


def tensor_names(shape: LlavaShape) -> dict[str, str]:
    """Every tensor of the model: its published name -> torchtune's state-dict key."""
    sides = ("weight", "bias")
    vision = "encoder.vision."
    names = {
        f"{_TOWER}embeddings.class_embedding": f"{vision}cls_token_embedding.weight",
        f"{_TOWER}embeddings.patch_embedding.weight": f"{vision}conv.weight",
        f"{_TOWER}embeddings.position_embedding.weight": f"{vision}token_pos_embedding.positional_embedding",
    }
    for side in sides:
        names[f"{_TOWER}pre_layrnorm.{side}"] = f"{vision}ln_pre.{side}"
        names[f"{_TOWER}post_layernorm.{side}"] = f"{vision}unused.ln_post.{side}"
        names[f"{_PROJECTION}linear_1.{side}"] = f"encoder.projection.0.{side}"
        names[f"{_PROJECTION}linear_2.{side}"] = f"encoder.projection.2.{side}"
    for layer in range(shape.vision_layers):
        ours = f"{vision}layers.{layer}." if layer < shape.vision_layers - 1 else f"{vision}unused.layer."
        for our_part, their_part in (CLIP_MAPS | CLIP_NORMS).items():
            for side in sides:
                names[f"{_TOWER}encoder.layers.{layer}.{their_part}.{side}"] = f"{ours}{our_part}.{side}"
    head = None if shape.tied else _HEAD
    names |= decoder_tensors(f"{_DECODER}model.", shape.layers, head=head, biased=shape.decoder == "qwen2")
    return names


def rotary_rows(tensor: Tensor, heads: int, *, published: bool) -> Tensor:
    """Reorder the rows of a query or key layer: torchtune keeps pairs, published files one half after the other.

    Args:
        tensor: [rows, columns], with the rows of one head together.
        heads: number of heads.
        published: True reorders into the published order, False into torchtune's.
    """
    rows, columns = tensor.shape
    half = rows // heads // 2
    sizes = (heads, half, 2, columns) if published else (heads, 2, half, columns)
    return tensor.reshape(sizes).transpose(1, 2).reshape(rows, columns)


def rotary_heads(key: str, shape: LlavaShape) -> int | None:
    """Number of heads of the query or key layer that a key belongs to, if torchtune's layer has other rows; else None.

    Its Llama layers have, which Mistral's decoder has too; its Qwen2 layers have the published rows.
    """
    if shape.decoder == "qwen2" or not key.startswith("decoder.layers."):
        return None
    return shape.heads if ".attn.q_proj." in key else shape.kv_heads if ".attn.k_proj." in key else None


def hf_to_tune(state: StateDict, *, shape: LlavaShape) -> StateDict:
    """From published names to torchtune's.

    The authors' layout (liuhaotian/llava-v1.5, microsoft/llava-med-v1.5-mistral-7b,
    FreedomIntelligence/HuatuoGPT-Vision-7B) is read too. Its vocabulary ends before the image token. The further
    rows of the published layout are set to the mean of the others; llava-hf drew them at random near this mean. The
    authors' layout is mostly saved without the vision tower, whose tensors may be in the same folder under CLIP's
    names.

    Args:
        state: tensors by their name on disk, or by that of a live transformers 5 module.
        shape: sizes of the model.

    Raises:
        ModelError: if a tensor does not belong to this model or occurs twice, or if the authors' layout comes without
            the vision tower.
    """
    given = [name for name in state if not name.startswith(_NOT_WEIGHTS) and not name.endswith(_COMPUTED)]
    plain = {disk_name(name): state[name] for name in given}
    if len(plain) < len(given):
        twice = next(name for name in given if state[name] is not plain[disk_name(name)])
        raise ModelError(f"it holds {disk_name(twice)} twice, under two names (one is {twice}); remove one file")
    if shape.tied:
        plain = without_copy(plain, (_HEAD,), (f"{_DECODER}model.embed_tokens.weight",))
    if any(name.startswith(_AUTHORS_MARK) for name in state) and not any(name.startswith(_TOWER) for name in plain):
        raise ModelError(
            "it is saved in the LLaVA authors' layout, without the vision tower. Take the converted weights "
            "(llava-hf/llava-1.5-7b-hf or -13b-hf), or put a safetensors file of openai/clip-vit-large-patch14-336 "
            "into the folder (and into its model.safetensors.index.json where it has one)"
        )
    names = tensor_names(shape)
    unknown = sorted(plain.keys() - names.keys())
    if unknown:
        raise ModelError(f"{len(unknown)} tensors that the model does not have (first: {unknown[0]}); check its size")
    renamed = {names[name]: tensor for name, tensor in plain.items()}
    return {key: _read(key, tensor, shape) for key, tensor in renamed.items()}


def _read(key: str, tensor: Tensor, shape: LlavaShape) -> Tensor:
    heads = rotary_heads(key, shape)
    if heads is not None:
        return rotary_rows(tensor, heads, published=False)
    if key in VOCABULARY and tensor.shape[0] == shape.image_id < shape.vocab_size:
        mean = tensor.float().mean(0, keepdim=True).to(tensor.dtype)
        return torch.cat([tensor, mean.expand(shape.vocab_size - shape.image_id, -1)])
    return tensor


def tune_to_hf(state: StateDict, *, shape: LlavaShape, layout: Layout = "hf") -> StateDict:
    """From torchtune's names to the published names, as in a file.

    Args:
        state: tensors by state-dict key, with adapters merged.
        shape: sizes of the model.
        layout: which of the two layouts.
    """
    names = {ours: theirs for theirs, ours in tensor_names(shape).items()}
    published = {}
    for key, tensor in state.items():
        heads = rotary_heads(key, shape)
        published[names[key]] = tensor if heads is None else rotary_rows(tensor, heads, published=True)
    return original_names(published, shape.image_id) if layout == "original" else published


def original_names(published: StateDict, image_id: int) -> StateDict:
    """From published names to those of the authors' files, vision tower included.

    Args:
        published: tensors as in a published file or in an export.
        image_id: the image token; the authors' vocabulary ends before it.

    Returns:
        Tensors by name. Rows of the vocabulary from ``image_id`` on are cut off.
    """
    vocabulary = (f"{_DECODER}model.embed_tokens.weight", f"{_DECODER}lm_head.weight")
    return {
        original_name(name): tensor[:image_id] if name in vocabulary else tensor for name, tensor in published.items()
    }


def original_name(name: str) -> str:
    """The name in the authors' files, and in their modules, of a tensor in a published file."""
    if name.startswith(_TOWER):
        return "model.vision_tower.vision_tower.vision_model." + name.removeprefix(_TOWER)
    if name.startswith(_PROJECTION):
        place, side = name.removeprefix(_PROJECTION).split(".")
        return f"model.mm_projector.{0 if place == 'linear_1' else 2}.{side}"
    return name.removeprefix(_DECODER)
