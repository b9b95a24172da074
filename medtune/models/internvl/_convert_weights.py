"""Converter of InternVL weights between torchtune's names and the two published layouts.

``original`` is OpenGVLab's layout (``vision_model.``, ``mlp1.``, ``language_model.``), with q, k and v in one tensor in
the vision transformer and, for InternLM2, in the decoder. ``hf`` is the layout of transformers (``vision_tower.``,
``multi_modal_projector.``, ``language_model.``), with one tensor per linear layer.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from medtune.errors import ModelError
from medtune.models.common.decoder_names import QKV, decoder_tensors
from medtune.models.common.family import ModelFamily, StateDict
from medtune.models.common.names import with_other_beginning
from medtune.models.common.tied import without_copy
from medtune.models.internvl._config import MODEL_TYPES, hf_config
from medtune.models.internvl._shape import InternVLShape, Layout

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.json",
    "chat_template.jinja",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
)
# OpenGVLab's layout is loaded by code files next to the weights; an export without them could not be loaded.
_CODE_FILES = (
    "configuration_intern_vit.py",
    "configuration_internlm2.py",
    "configuration_internvl_chat.py",
    "conversation.py",
    "modeling_intern_vit.py",
    "modeling_internlm2.py",
    "modeling_internvl_chat.py",
    "tokenization_internlm2.py",
    "tokenization_internlm2_fast.py",
)
_LIVE_PREFIXES = (
    ("model.language_model.", "language_model.model."),
    ("model.vision_tower.", "vision_tower."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("lm_head.", "language_model.lm_head."),
)
_HEADS = ("language_model.lm_head.weight", "language_model.output.weight")
_WORDS = ("language_model.model.embed_tokens.weight", "language_model.model.tok_embeddings.weight")
_SIDES = ("weight", "bias")
_DECODER_INTERNLM2 = {
    "attn.output_proj.weight": "attention.wo.weight",
    "mlp.w1.weight": "feed_forward.w1.weight",
    "mlp.w2.weight": "feed_forward.w2.weight",
    "mlp.w3.weight": "feed_forward.w3.weight",
    "sa_norm.scale": "attention_norm.weight",
    "mlp_norm.scale": "ffn_norm.weight",
}
_VISION_HF = {
    "attn.output_proj": "attention.projection_layer",
    "mlp.w1": "mlp.fc1",
    "mlp.w2": "mlp.fc2",
    "sa_norm": "layernorm_before",
    "mlp_norm": "layernorm_after",
}
_VISION_ORIGINAL = {
    "attn.output_proj": "attn.proj",
    "mlp.w1": "mlp.fc1",
    "mlp.w2": "mlp.fc2",
    "sa_norm": "norm1",
    "mlp_norm": "norm2",
}

Table = dict[str, tuple[str, ...]]


def disk_name(name: str) -> str:
    """The name in a published file of a tensor that may have another name in a live transformers 5 module."""
    return with_other_beginning(name, _LIVE_PREFIXES)


def live_name(name: str) -> str:
    """The name in a live transformers 5 module of a tensor in a published file; the inverse of :func:`disk_name`."""
    return with_other_beginning(name, ((disk, live) for live, disk in _LIVE_PREFIXES))


def table(shape: InternVLShape, layout: Layout) -> Table:
    """Every published tensor of a model of this shape -> the state-dict keys that it holds (three if packed)."""
    names = _vision_hf(shape) if layout == "hf" else _vision_original(shape)
    packed = layout == "original" and shape.packed_decoder
    names |= _decoder_internlm2(shape) if packed else _decoder_hf(shape)
    if shape.tied:
        del names["language_model.output.weight" if packed else "language_model.lm_head.weight"]
    return names


def _both(published: str, ours: str) -> Table:
    return {f"{published}.{side}": (f"{ours}.{side}",) for side in _SIDES}


def _vision_hf(shape: InternVLShape) -> Table:
    top, vision = "vision_tower.embeddings", "encoder.vision"
    names: Table = {
        f"{top}.cls_token": (f"{vision}.cls_token",),
        f"{top}.position_embeddings": (f"{vision}.positions",),
    }
    names |= _both(f"{top}.patch_embeddings.projection", f"{vision}.conv")
    for layer in range(shape.vision_layers):
        theirs, ours = f"vision_tower.encoder.layer.{layer}", f"{vision}.layers.{layer}"
        for a, b in _VISION_HF.items():
            names |= _both(f"{theirs}.{b}", f"{ours}.{a}")
        for part in QKV:
            names |= _both(f"{theirs}.attention.{part}", f"{ours}.attn.{part}")
        names[f"{theirs}.lambda_1"] = (f"{ours}.sa_scale.gamma",)
        names[f"{theirs}.lambda_2"] = (f"{ours}.mlp_scale.gamma",)
    for a, b in (("norm", "layer_norm"), ("linear_1", "linear_1"), ("linear_2", "linear_2")):
        names |= _both(f"multi_modal_projector.{b}", f"encoder.projection.{a}")
    return names


def _vision_original(shape: InternVLShape) -> Table:
    top, vision = "vision_model.embeddings", "encoder.vision"
    names: Table = {
        f"{top}.class_embedding": (f"{vision}.cls_token",),
        f"{top}.position_embedding": (f"{vision}.positions",),
    }
    names |= _both(f"{top}.patch_embedding", f"{vision}.conv")
    for layer in range(shape.vision_layers):
        theirs, ours = f"vision_model.encoder.layers.{layer}", f"{vision}.layers.{layer}"
        for a, b in _VISION_ORIGINAL.items():
            names |= _both(f"{theirs}.{b}", f"{ours}.{a}")
        for side in _SIDES:
            names[f"{theirs}.attn.qkv.{side}"] = tuple(f"{ours}.attn.{part}.{side}" for part in QKV)
        names[f"{theirs}.ls1"] = (f"{ours}.sa_scale.gamma",)
        names[f"{theirs}.ls2"] = (f"{ours}.mlp_scale.gamma",)
    for a, b in (("norm", "0"), ("linear_1", "1"), ("linear_2", "3")):
        names |= _both(f"mlp1.{b}", f"encoder.projection.{a}")
    return names


def _decoder_hf(shape: InternVLShape) -> Table:
    names = decoder_tensors(
        "language_model.model.",
        shape.layers,
        head="language_model.lm_head.weight",
        biased=shape.decoder == "qwen2",
    )
    return {theirs: (ours,) for theirs, ours in names.items()}


def _decoder_internlm2(shape: InternVLShape) -> Table:
    names: Table = {
        "language_model.model.tok_embeddings.weight": ("decoder.tok_embeddings.weight",),
        "language_model.model.norm.weight": ("decoder.norm.scale",),
        "language_model.output.weight": ("decoder.output.weight",),
    }
    for layer in range(shape.layers):
        theirs, ours = f"language_model.model.layers.{layer}", f"decoder.layers.{layer}"
        names |= {f"{theirs}.{b}": (f"{ours}.{a}",) for a, b in _DECODER_INTERNLM2.items()}
        names[f"{theirs}.attention.wqkv.weight"] = tuple(f"{ours}.attn.{part}.weight" for part in QKV)
    return names


def hf_to_tune(state: StateDict, *, shape: InternVLShape) -> StateDict:
    """From published names to torchtune's. The layout is recognised by the names.

    Args:
        state: tensors by their name on disk, or by that of a live transformers 5 module.
        shape: sizes of the model.

    Raises:
        ModelError: if a name is in neither layout of this shape, or a packed tensor has another number of rows.
    """
    named = {disk_name(name): tensor for name, tensor in state.items() if "rotary_emb.inv_freq" not in name}
    layout: Layout = "original" if any(name.startswith(("vision_model.", "mlp1.")) for name in named) else "hf"
    names = table(shape, layout)
    if shape.tied:
        named = without_copy(named, _HEADS, _WORDS)
    unknown = sorted(named.keys() - names.keys())
    if unknown:
        raise ModelError(
            f"{len(unknown)} tensors are not of this model in the layout {layout!r} (first: {unknown[0]}); "
            "check the model's size and its decoder"
        )
    converted: StateDict = {}
    for name, tensor in named.items():
        keys = names[name]
        parts = (tensor,) if len(keys) == 1 else unpack(name, tensor, shape)
        converted |= {
            key: reorder_rotary(key, part, shape, published=False) for key, part in zip(keys, parts, strict=True)
        }
    return converted


def tune_to_hf(state: StateDict, *, shape: InternVLShape, layout: Layout) -> StateDict:
    """From torchtune's names to published names, as in a file.

    Args:
        state: tensors by state-dict key, with adapters merged.
        shape: sizes of the model.
        layout: which of the two layouts.

    Raises:
        ModelError: if a tensor is missing.
    """
    names = table(shape, layout)
    missing = sorted({key for keys in names.values() for key in keys} - state.keys())
    if missing:
        raise ModelError(f"{len(missing)} tensors of the model are missing (first: {missing[0]})")
    published: StateDict = {}
    for name, keys in names.items():
        parts = [reorder_rotary(key, state[key], shape, published=True) for key in keys]
        published[name] = parts[0] if len(parts) == 1 else pack(name, parts, shape)
    return published


def unpack(name: str, packed: Tensor, shape: InternVLShape) -> tuple[Tensor, ...]:
    """Split q, k and v from one tensor [rows, n]: in sequence for InternViT, by key/value group for InternLM2.

    Raises:
        ModelError: if it has another number of rows.
    """
    if name.startswith("vision_model."):
        _check_rows(name, packed, 3 * shape.vision_dim)
        return packed.split(shape.vision_dim)
    _check_rows(name, packed, (shape.heads + 2 * shape.kv_heads) * shape.head_dim)
    groups = packed.view(shape.kv_heads, shape.heads // shape.kv_heads + 2, shape.head_dim, -1)
    parts = groups[:, :-2], groups[:, -2], groups[:, -1]
    return tuple(part.reshape(-1, packed.shape[1]) for part in parts)


def pack(name: str, parts: Sequence[Tensor], shape: InternVLShape) -> Tensor:
    """The inverse of :func:`unpack`."""
    if name.startswith("vision_model."):
        return torch.cat(list(parts))
    width = parts[0].shape[1]
    groups = [part.view(shape.kv_heads, -1, shape.head_dim, width) for part in parts]
    return torch.cat(groups, dim=1).reshape(-1, width)


def _check_rows(name: str, tensor: Tensor, rows: int) -> None:
    if tensor.shape[0] != rows:
        raise ModelError(f"{name} has {tensor.shape[0]} rows, the model {rows}; check the model's size")


def reorder_rotary(key: str, tensor: Tensor, shape: InternVLShape, *, published: bool) -> Tensor:
    """Reorder the rows of a rotary head: torchtune's Llama layers interleave them, published weights do not.

    Published weights put one half of a head's rows after the other.

    Args:
        key: state-dict key; only q and k of an InternLM2 decoder (weights, and B of their adapters) are changed.
        tensor: its value, one row per output.
        shape: sizes of the model.
        published: True reorders into the published order, False into torchtune's.

    Raises:
        ModelError: if the number of rows does not match the heads.
    """
    heads = {"attn.q_proj": shape.heads, "attn.k_proj": shape.kv_heads}
    place = key.removeprefix("decoder.layers.").partition(".")[2]
    module, _, rest = place.rpartition(".lora_b.") if ".lora_b." in place else place.rpartition(".")
    if shape.decoder != "internlm2" or not key.startswith("decoder.layers.") or module not in heads or rest != "weight":
        return tensor
    rows, width = tensor.shape
    _check_rows(key, tensor, heads[module] * shape.head_dim)
    half = shape.head_dim // 2
    sizes = (heads[module], half, 2, width) if published else (heads[module], 2, half, width)
    return tensor.reshape(sizes).transpose(1, 2).reshape(rows, width)


def internvl_family(name: str, shape: InternVLShape, layout: Layout) -> ModelFamily:
    """Converters and config of one model of this shape.

    Raises:
        ModelError: if ``layout`` is unknown.
    """
    if layout not in MODEL_TYPES:
        raise ModelError(f"{name}: layout must be one of {', '.join(MODEL_TYPES)}, got {layout!r}")
    return ModelFamily(
        name=name,
        model_type=MODEL_TYPES[layout],
        hf_to_tune=partial(hf_to_tune, shape=shape),
        tune_to_hf=partial(tune_to_hf, shape=shape, layout=layout),
        hf_config=partial(hf_config, shape, layout),
        live_name=live_name if layout == "hf" else disk_name,  # OpenGVLab's modules have the names of its files
        also_reads=tuple(set(MODEL_TYPES.values()) - {MODEL_TYPES[layout]}),
        layouts=tuple(partial(hf_config, shape, other) for other in MODEL_TYPES if other != layout),
        tokenizer_files=TOKENIZER_FILES + (_CODE_FILES if layout == "original" else ()),
    )
