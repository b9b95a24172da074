"""Converter of Qwen2.5-VL weights between torchtune's names and the published layout.

Files have ``visual.``, ``model.`` and ``lm_head.``; a live transformers 5 model has ``model.visual.`` and
``model.language_model.``. The vision tower's q, k and v are in one tensor. With tied embeddings there is no
``lm_head``.
"""

from functools import partial

import torch

from medtune.errors import ModelError
from medtune.models.common.decoder_names import QKV, decoder_tensors
from medtune.models.common.family import ModelFamily, StateDict
from medtune.models.common.names import with_other_beginning
from medtune.models.common.tied import without_copy
from medtune.models.qwen2_5_vl._config import MODEL_TYPE, hf_config
from medtune.models.qwen2_5_vl._shape import Qwen2_5VLShape

TOKENIZER_FILES = (
    "tokenizer.json",
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
    "video_preprocessor_config.json",
)
_SIDES = ("weight", "bias")
_LIVE_PREFIXES = (("model.language_model.", "model."), ("model.visual.", "visual."))
VISION = {
    "attn.output_proj": "attn.proj",
    "mlp.w1": "mlp.gate_proj",
    "mlp.w2": "mlp.down_proj",
    "mlp.w3": "mlp.up_proj",
}
Table = dict[str, tuple[str, ...]]


def disk_name(name: str) -> str:
    """The name in a published file of a tensor that may have another name in a live transformers 5 module."""
    return with_other_beginning(name, _LIVE_PREFIXES)


def live_name(name: str) -> str:
    """The name in a live transformers 5 module of a tensor in a published file; the inverse of :func:`disk_name`."""
    return with_other_beginning(name, ((disk, live) for live, disk in _LIVE_PREFIXES))


def table(shape: Qwen2_5VLShape) -> Table:
    """Every published tensor of a model of this shape -> the state-dict keys that it holds (three if packed)."""
    names: Table = {
        "visual.patch_embed.proj.weight": ("encoder.vision.conv.weight",),
        "visual.merger.ln_q.weight": ("encoder.projection.norm.scale",),
    }
    decoder = decoder_tensors("model.", shape.layers, head=None if shape.tied else "lm_head.weight", biased=True)
    names |= {theirs: (ours,) for theirs, ours in decoder.items()}
    for number, ours in (("0", "linear_1"), ("2", "linear_2")):
        names |= _both(f"visual.merger.mlp.{number}", f"encoder.projection.{ours}")
    for layer in range(shape.vision_layers):
        theirs, ours = f"visual.blocks.{layer}", f"encoder.vision.layers.{layer}"
        names |= {f"{theirs}.norm1.weight": (f"{ours}.sa_norm.scale",)}
        names |= {f"{theirs}.norm2.weight": (f"{ours}.mlp_norm.scale",)}
        for side in _SIDES:
            names[f"{theirs}.attn.qkv.{side}"] = tuple(f"{ours}.attn.{part}.{side}" for part in QKV)
        for a, b in VISION.items():
            names |= _both(f"{theirs}.{b}", f"{ours}.{a}")
    return names


def _both(published: str, ours: str) -> Table:
    return {f"{published}.{side}": (f"{ours}.{side}",) for side in _SIDES}


def hf_to_tune(state: StateDict, *, shape: Qwen2_5VLShape) -> StateDict:
    """From published names to torchtune's.

    Args:
        state: tensors by their name on disk, or by that of a live transformers 5 module.
        shape: sizes of the model.

    Raises:
        ModelError: if a name is not of this shape, a packed tensor has another number of rows, or there is an output
            layer of its own where embeddings are tied.
    """
    named = {disk_name(name): tensor for name, tensor in state.items() if "rotary_emb.inv_freq" not in name}
    if shape.tied:
        named = without_copy(named, ("lm_head.weight",), ("model.embed_tokens.weight",))
    names = table(shape)
    unknown = sorted(named.keys() - names.keys())
    if unknown:
        raise ModelError(f"{len(unknown)} tensors are not of this model (first: {unknown[0]}); check the model's size")
    converted: StateDict = {}
    for name, tensor in named.items():
        keys = names[name]
        if len(keys) > 1 and tensor.shape[0] != len(keys) * shape.vision_dim:
            raise ModelError(
                f"{name} has {tensor.shape[0]} rows, the model {len(keys) * shape.vision_dim}; check the model's size"
            )
        converted |= zip(keys, tensor.chunk(len(keys)) if len(keys) > 1 else (tensor,), strict=True)
    return converted


def tune_to_hf(state: StateDict, *, shape: Qwen2_5VLShape) -> StateDict:
    """From torchtune's names to published names, as in a file.

    Args:
        state: tensors by state-dict key, with adapters merged.
        shape: sizes of the model.

    Raises:
        ModelError: if a tensor is missing.
    """
    names = table(shape)
    missing = sorted({key for keys in names.values() for key in keys} - state.keys())
    if missing:
        raise ModelError(f"{len(missing)} tensors of the model are missing (first: {missing[0]})")
    return {
        name: state[keys[0]] if len(keys) == 1 else torch.cat([state[key] for key in keys])
        for name, keys in names.items()
    }


def qwen2_5_vl_family(name: str, shape: Qwen2_5VLShape) -> ModelFamily:
    """Converters and config of one model of this shape."""
    return ModelFamily(
        name=name,
        model_type=MODEL_TYPE,
        hf_to_tune=partial(hf_to_tune, shape=shape),
        tune_to_hf=partial(tune_to_hf, shape=shape),
        hf_config=partial(hf_config, shape),
        live_name=live_name,
        layouts=(partial(hf_config, shape, nested=True),),
        tokenizer_files=TOKENIZER_FILES,
    )
