"""Contents of ``config.json`` for models of the Gemma 3 family, written and read."""

from collections.abc import Mapping
from typing import Any

from medtune.errors import ModelError
from medtune.models.gemma3._shape import Gemma3Shape
from medtune.models.published_config import rope_of

MODEL_TYPE = "gemma3"
_LOCAL, _GLOBAL = "sliding_attention", "full_attention"


def hf_config(shape: Gemma3Shape) -> dict[str, Any]:
    """Contents of ``config.json``, in the spelling that all versions of transformers and vLLM read.

    Args:
        shape: sizes of the model.
    """
    scaling = {} if shape.rope_factor == 1 else {"rope_scaling": {"factor": shape.rope_factor, "rope_type": "linear"}}
    text = {
        "model_type": "gemma3_text",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.dim,
        "hidden_activation": "gelu_pytorch_tanh",
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.mlp_dim,
        "query_pre_attn_scalar": _plain(shape.query_scale),
        "attention_bias": False,
        "rms_norm_eps": shape.norm_eps,
        "max_position_embeddings": shape.context,
        "sliding_window": shape.window,
        "sliding_window_pattern": shape.pattern,
        "layer_types": [_LOCAL if shape.is_local(layer) else _GLOBAL for layer in range(shape.layers)],
        "rope_theta": shape.rope_base,
        "rope_local_base_freq": shape.local_rope_base,
        **scaling,
        "tie_word_embeddings": True,
        "bos_token_id": shape.bos_id,
        "eos_token_id": shape.eos_ids[0],
        "pad_token_id": shape.pad_id,
    }
    vision = {
        "model_type": "siglip_vision_model",
        "image_size": shape.image_size,
        "patch_size": shape.patch_size,
        "num_channels": 3,
        "hidden_size": shape.vision_dim,
        "hidden_act": "gelu_pytorch_tanh",
        "num_hidden_layers": shape.vision_layers,
        "num_attention_heads": shape.vision_heads,
        "intermediate_size": shape.vision_mlp_dim,
        "layer_norm_eps": shape.vision_eps,
        "vision_use_head": False,
    }
    return {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": MODEL_TYPE,
        "boi_token_index": shape.image_start_id,
        "eoi_token_index": shape.image_end_id,
        "image_token_index": shape.image_id,
        "mm_tokens_per_image": shape.tokens_per_image,
        "tie_word_embeddings": True,
        "eos_token_id": list(shape.eos_ids),
        "text_config": text,
        "vision_config": vision,
    }


def _plain(value: float) -> int | float:
    return int(value) if float(value).is_integer() else value


# What transformers assumes of keys that a config.json leaves out; the published 4B leaves out most of them.
_TEXT = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "intermediate_size": 9216,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 131_072,
    "sliding_window": 4096,
    "sliding_window_pattern": 6,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
}
_VISION = {
    "image_size": 224,
    "patch_size": 16,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-6,
}
_TOP = {
    "boi_token_index": 255_999,
    "eoi_token_index": 256_000,
    "image_token_index": 262_144,
    "mm_tokens_per_image": 256,
}
# Keys that would change what the model computes, and the only value that is computed here.
_ONLY_TEXT = {
    "hidden_activation": "gelu_pytorch_tanh",
    "attention_bias": False,
    "tie_word_embeddings": True,
    "use_bidirectional_attention": False,
    "final_logit_softcapping": None,
    "attn_logit_softcapping": None,
}
_ONLY_VISION = {"hidden_act": "gelu_pytorch_tanh", "num_channels": 3, "vision_use_head": False}
_OTHERWISE = "predict can ask such a model through a backend (predict/transformers_local, predict/openai_server)"


def shape_from_config(config: Mapping[str, Any]) -> Gemma3Shape:
    """The sizes that a ``config.json`` describes, in the spelling of any version of transformers.

    Args:
        config: contents of the file. Keys that it lacks have transformers' default values.

    Raises:
        ModelError: naming the key, if a part is missing, a value is of another type, or the model computes something
            that this family does not.
    """
    where = "config.json"
    text, vision = _part(config, "text_config"), _part(config, "vision_config")
    _refuse(config, {"tie_word_embeddings": True}, where)
    _refuse(text, _ONLY_TEXT, f"{where}: text_config")
    _refuse(vision, _ONLY_VISION, f"{where}: vision_config")
    rope = rope_of(text)
    sizes = _values(_TEXT, {**text, **_given(rope, "rope_theta", "rope_local_base_freq")}, f"{where}: text_config")
    sight = _values(_VISION, vision, f"{where}: vision_config")
    top = _values(_TOP, {**config, **_renamed(config)}, where)
    ends = config.get("eos_token_id", (1, 106))
    shape = Gemma3Shape(
        image_size=sight["image_size"],
        patch_size=sight["patch_size"],
        vision_dim=sight["hidden_size"],
        vision_layers=sight["num_hidden_layers"],
        vision_heads=sight["num_attention_heads"],
        vision_mlp_dim=sight["intermediate_size"],
        vision_eps=sight["layer_norm_eps"],
        tokens_per_image=top["mm_tokens_per_image"],
        dim=sizes["hidden_size"],
        layers=sizes["num_hidden_layers"],
        heads=sizes["num_attention_heads"],
        kv_heads=sizes["num_key_value_heads"],
        head_dim=sizes["head_dim"],
        mlp_dim=sizes["intermediate_size"],
        vocab_size=sizes["vocab_size"],
        query_scale=sizes["query_pre_attn_scalar"],
        window=sizes["sliding_window"],
        pattern=_pattern(text, sizes),
        rope_base=float(sizes["rope_theta"]),
        rope_factor=_factor(rope.get("rope_scaling")),
        local_rope_base=float(sizes["rope_local_base_freq"]),
        norm_eps=sizes["rms_norm_eps"],
        image_id=top["image_token_index"],
        image_start_id=top["boi_token_index"],
        image_end_id=top["eoi_token_index"],
        eos_ids=tuple(ends) if isinstance(ends, list | tuple) else (ends,),
        bos_id=text.get("bos_token_id") or 2,
        pad_id=text.get("pad_token_id") or 0,
        context=sizes["max_position_embeddings"],
        max_seq_len=min(sizes["max_position_embeddings"], 8192),
    )
    return shape


def _given(values: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: values[key] for key in keys if key in values}


def _renamed(config: Mapping[str, Any]) -> dict[str, Any]:
    """``image_token_id`` and so on, as some versions call the tokens."""
    names = {key.replace("_index", "_id"): key for key in _TOP}
    return {key: config[name] for name, key in names.items() if name in config}


def _part(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = config.get(key)
    if not isinstance(found, Mapping):
        raise ModelError(f"config.json has no {key}; download it again")
    return found


def _refuse(given: Mapping[str, Any], only: Mapping[str, Any], where: str) -> None:
    """Refuse a value that this family does not compute; a key that is missing or null has its usual value."""
    for key, allowed in only.items():
        value = given.get(key)
        if value is not None and value != allowed:
            raise ModelError(f"{where}: {key} is {value!r}, which medtune's Gemma 3 does not compute. {_OTHERWISE}")


def _values(defaults: Mapping[str, int | float], given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Each key's value, or its default; whole numbers stay whole."""
    found: dict[str, Any] = {}
    for key, default in defaults.items():
        value = given[key] if given.get(key) is not None else default
        kinds = (int,) if isinstance(default, int) and key != "query_pre_attn_scalar" else (int, float)
        if not isinstance(value, kinds) or isinstance(value, bool) or value <= 0:
            what = "whole number" if kinds == (int,) else "number"
            raise ModelError(f"{where}: {key} must be a positive {what}, got {value!r}; download the file again")
        found[key] = value
    return found


def _pattern(text: Mapping[str, Any], sizes: Mapping[str, Any]) -> int:
    """Every which layer is global; newer files list the kind of each layer."""
    kinds = text.get("layer_types")
    if kinds is None:
        return int(sizes["sliding_window_pattern"])
    layers = sizes["num_hidden_layers"]
    pattern = kinds.index(_GLOBAL) + 1 if isinstance(kinds, list) and _GLOBAL in kinds else layers + 1
    expected = [_GLOBAL if (layer + 1) % pattern == 0 else _LOCAL for layer in range(layers)]
    if kinds != expected:
        raise ModelError(
            "config.json: text_config: layer_types does not repeat one pattern of local layers and a global one, which "
            f"medtune's Gemma 3 needs. {_OTHERWISE}"
        )
    return pattern


def _factor(scaling: Any) -> float:
    if scaling is None:
        return 1.0
    kind, factor = scaling.get("rope_type"), scaling.get("factor")
    if kind != "linear" or not isinstance(factor, int | float) or isinstance(factor, bool) or factor <= 0:
        raise ModelError(
            f"config.json: text_config: positions are scaled by {kind!r}, and medtune's Gemma 3 computes linear "
            f"scaling by a positive factor alone. {_OTHERWISE}"
        )
    return float(factor)
