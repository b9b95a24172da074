"""``config.json`` of the Qwen2.5-VL family: written in both spellings, and read into sizes."""

from collections.abc import Mapping
from typing import Any

from medtune.errors import ModelError
from medtune.models.qwen2_5_vl._shape import FRAMES, MERGE, Qwen2_5VLShape

MODEL_TYPE = "qwen2_5_vl"
_ARCHITECTURE = "Qwen2_5_VLForConditionalGeneration"
# key -> the only value that the builders know
_FIXED_TEXT = {"hidden_act": "silu", "use_sliding_window": False}
_FIXED_VISION = {
    "hidden_act": "silu",
    "spatial_merge_size": MERGE,
    "temporal_patch_size": FRAMES,
    "in_channels": 3,
    "in_chans": 3,
}


def hf_config(shape: Qwen2_5VLShape, *, nested: bool = False) -> dict[str, Any]:
    """Contents of ``config.json``.

    Args:
        shape: sizes of the model.
        nested: True writes the decoder's keys under ``text_config``, as transformers 5 saves them; False at the top,
            as in published files.
    """
    text = _text(shape)
    tokens = {
        "vision_start_token_id": shape.vision_start_id,
        "vision_end_token_id": shape.vision_end_id,
        "image_token_id": shape.image_id,
        "video_token_id": shape.video_id,
    }
    top = {"architectures": [_ARCHITECTURE], "model_type": MODEL_TYPE, **tokens, "tie_word_embeddings": shape.tied}
    if nested:
        text = {"model_type": "qwen2_5_vl_text", **text}
    return {**top, **({"text_config": text} if nested else text), "vision_config": _vision(shape)}


def _text(shape: Qwen2_5VLShape) -> dict[str, Any]:
    return {
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.dim,
        "hidden_act": "silu",
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "intermediate_size": shape.mlp_dim,
        "rms_norm_eps": shape.norm_eps,
        "max_position_embeddings": shape.max_seq_len,
        "rope_theta": shape.rope_base,
        "rope_scaling": {"type": "mrope", "mrope_section": list(shape.rope_sections)},
        "use_sliding_window": False,
        "bos_token_id": shape.bos_id,
        "eos_token_id": shape.eos_id,
    }


def _vision(shape: Qwen2_5VLShape) -> dict[str, Any]:
    return {
        "depth": shape.vision_layers,
        "hidden_size": shape.vision_dim,
        "hidden_act": "silu",
        "intermediate_size": shape.vision_mlp_dim,
        "num_heads": shape.vision_heads,
        "out_hidden_size": shape.dim,
        "patch_size": shape.patch_size,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": FRAMES,
        "window_size": shape.window_size,
        "fullatt_block_indexes": list(shape.full_layers),
    }


def shape_from_config(config: Mapping[str, Any]) -> Qwen2_5VLShape:
    """Sizes of the model that a ``config.json`` describes, in either spelling.

    Args:
        config: contents of the file.

    Raises:
        ModelError: if a key is missing, or has a value that the builders do not know; the message names it.
    """
    if config.get("model_type") != MODEL_TYPE:
        raise ModelError(f"config.json describes a model of type {config.get('model_type')!r}, not {MODEL_TYPE!r}")
    text = config["text_config"] if isinstance(config.get("text_config"), Mapping) else config
    where = "text_config." if text is not config else ""
    vision = _key(config, "vision_config")
    _refuse_other(text, _FIXED_TEXT, where)
    _refuse_other(vision, _FIXED_VISION, "vision_config.")
    rope = {**(text.get("rope_scaling") or {}), **(text.get("rope_parameters") or {})}
    kind = rope.get("rope_type", rope.get("type"))
    if kind not in ("mrope", "default") or "mrope_section" not in rope:
        raise ModelError(f"config.json: {where}rope_scaling is of type {kind!r}, and only mrope is built")
    tied = config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
    # in newer files the width of the tower is hidden_size, and that of the merger's output out_hidden_size
    return Qwen2_5VLShape(
        vision_dim=_key(vision, "hidden_size", "vision_config."),
        vision_layers=_key(vision, "depth", "vision_config."),
        vision_heads=_key(vision, "num_heads", "vision_config."),
        vision_mlp_dim=_key(vision, "intermediate_size", "vision_config."),
        full_layers=tuple(_key(vision, "fullatt_block_indexes", "vision_config.")),
        dim=_key(text, "hidden_size", where),
        layers=_key(text, "num_hidden_layers", where),
        heads=_key(text, "num_attention_heads", where),
        kv_heads=_key(text, "num_key_value_heads", where),
        mlp_dim=_key(text, "intermediate_size", where),
        vocab_size=_key(text, "vocab_size", where),
        tied=bool(tied),
        image_id=_key(config, "image_token_id"),
        video_id=config.get("video_token_id", 151_656),
        vision_start_id=config.get("vision_start_token_id", 151_652),
        vision_end_id=config.get("vision_end_token_id", 151_653),
        bos_id=_first(text.get("bos_token_id"), 151_643),
        eos_id=_first(text.get("eos_token_id"), 151_645),
        patch_size=_key(vision, "patch_size", "vision_config."),
        window_size=_key(vision, "window_size", "vision_config."),
        rope_sections=tuple(rope["mrope_section"]),
        rope_base=float(text.get("rope_theta") or _key(rope, "rope_theta", f"{where}rope_parameters.")),
        norm_eps=float(_key(text, "rms_norm_eps", where)),
        max_seq_len=_key(text, "max_position_embeddings", where),
    )


def _key(config: Mapping[str, Any], name: str, where: str = "") -> Any:
    if config.get(name) is None:
        raise ModelError(f"config.json has no {where}{name}; copy the file of the checkpoint again")
    return config[name]


def _first(value: Any, otherwise: int) -> int:
    """The first of several ids, as some files list them."""
    first = value[0] if isinstance(value, list) and value else value
    return first if isinstance(first, int) else otherwise


def _refuse_other(config: Mapping[str, Any], fixed: Mapping[str, Any], where: str) -> None:
    for name, value in fixed.items():
        if config.get(name, value) != value:
            raise ModelError(f"config.json: {where}{name} is {config[name]!r}, and only {value!r} is built")
