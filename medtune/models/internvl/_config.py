"""``config.json`` of models of the InternVL family, in both published layouts: written from a shape, read into one."""

from collections.abc import Mapping
from typing import Any, get_args

from medtune.errors import ModelError
from medtune.models.common.decoder_config import decoder_sizes
from medtune.models.internvl._shape import SHUFFLE, InternVLShape, Layout, Template

MODEL_TYPES: dict[Layout, str] = {"original": "internvl_chat", "hf": "internvl"}
_VISION_EPS = 1e-6


def hf_config(shape: InternVLShape, layout: Layout) -> dict:
    """Contents of ``config.json``.

    InternLM2 with separate q, k and v is a plain Llama, and has this name in the ``hf`` layout. Its ``rope_scaling`` of
    the type ``dynamic`` is left out, because it changes nothing up to ``max_position_embeddings``.

    Args:
        shape: sizes of the model.
        layout: which of the two layouts.
    """
    return _hf(shape) if layout == "hf" else _original(shape)


def _hf(shape: InternVLShape) -> dict:
    vision = {
        "architectures": ["InternVLVisionModel"],
        "model_type": "internvl_vision",
        "image_size": [shape.image_size, shape.image_size],
        "patch_size": [shape.patch_size, shape.patch_size],
        "hidden_size": shape.vision_dim,
        "num_hidden_layers": shape.vision_layers,
        "num_attention_heads": shape.vision_heads,
        "intermediate_size": shape.vision_mlp_dim,
        "attention_bias": True,
        "use_qk_norm": False,
        "use_mean_pooling": True,
        "use_absolute_position_embeddings": True,
        "use_mask_token": False,
        "hidden_act": "gelu",
        "norm_type": "layer_norm",
        "layer_norm_eps": _VISION_EPS,
        "layer_scale_init_value": shape.layer_scale,
    }
    return {
        "architectures": ["InternVLForConditionalGeneration"],
        "model_type": MODEL_TYPES["hf"],
        "image_token_id": shape.image_id,
        "image_seq_length": shape.tokens_per_tile,
        "downsample_ratio": 1 / SHUFFLE,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": shape.tied,
        **({} if shape.template is None else {"template": shape.template}),
        "text_config": _decoder(shape, "llama" if shape.decoder == "internlm2" else "qwen2"),
        "vision_config": vision,
    }


def _original(shape: InternVLShape) -> dict:
    vision = {
        "architectures": ["InternVisionModel"],
        "model_type": "intern_vit_6b",  # the name of the class for every size
        "image_size": shape.image_size,
        "patch_size": shape.patch_size,
        "hidden_size": shape.vision_dim,
        "num_hidden_layers": shape.vision_layers,
        "num_attention_heads": shape.vision_heads,
        "intermediate_size": shape.vision_mlp_dim,
        "qkv_bias": True,
        "qk_normalization": False,
        "hidden_act": "gelu",
        "norm_type": "layer_norm",
        "layer_norm_eps": _VISION_EPS,
        "initializer_factor": shape.layer_scale,
        "use_flash_attn": False,
    }
    return {
        "architectures": ["InternVLChatModel"],
        "model_type": MODEL_TYPES["original"],
        "force_image_size": shape.image_size,
        "downsample_ratio": 1 / SHUFFLE,
        "ps_version": "v2",
        "select_layer": -1,
        "template": shape.chat,
        "dynamic_image_size": True,
        "use_thumbnail": True,
        "min_dynamic_patch": 1,
        "max_dynamic_patch": 12,
        "tie_word_embeddings": shape.tied,
        "llm_config": _decoder(shape, shape.decoder),
        "vision_config": vision,
    }


_ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "internlm2": "InternLM2ForCausalLM"}


def _decoder(shape: InternVLShape, kind: str) -> dict:
    config = {
        "architectures": [_ARCHITECTURES[kind]],
        "model_type": kind,
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
        "tie_word_embeddings": shape.tied,
        "bos_token_id": shape.bos_id,
        "eos_token_id": shape.eos_id,
        "pad_token_id": shape.pad_id,
    }
    bias = {"llama": {"attention_bias": False, "mlp_bias": False}, "internlm2": {"bias": False}, "qwen2": {}}
    return config | bias[kind]


# llm_config.model_type -> the published model that has it.
_OTHER_DECODERS = {
    "phi3": "InternVL2-4B (decoder Phi-3)",
    "internlm3": "InternVL3-9B (decoder InternLM3)",
    "qwen3": "InternVL3.5 (decoder Qwen3)",
    "qwen3_moe": "InternVL3.5 (decoder Qwen3, mixture of experts)",
    "llama": "InternVL2-40B or InternVL2-Llama3-76B (decoder Llama)",
}
_INSTEAD = "take a size of 1B to 14B of InternVL2, 2.5 or 3, or ask it through a backend (predict/transformers_local)"
_IMAGE_IDS = {"internlm2": 92_546, "qwen2": 151_667}
_QWEN2_VOCABULARY, _QWEN2_IMAGE_ID = 151_655, 151_648  # InternVL2-1B, whose tokenizer is Qwen2's


def shape_from_config(config: Mapping[str, Any]) -> InternVLShape:
    """The sizes that a ``config.json`` describes, in either layout.

    Args:
        config: contents of the file. Keys that it lacks have transformers' default values. In OpenGVLab's layout it
            does not name the image token; the usual one of the decoder is taken, and a tokenizer decides.

    Raises:
        ModelError: naming the model and the key, if the family does not cover it: another decoder (InternVL2-4B,
            InternVL3-9B, InternVL3.5), the vision transformer of 6B parameters, another chat format.
    """
    hf = config.get("model_type") == MODEL_TYPES["hf"]
    key = "text_config" if "text_config" in config else "llm_config"
    text, vision = _part(config, key), _part(config, "vision_config")
    kind = text.get("model_type", "qwen2" if hf else "internlm2")
    if kind in _OTHER_DECODERS and (kind != "llama" or not hf):
        raise ModelError(f"this is {_OTHER_DECODERS[kind]}, which medtune does not build; {_INSTEAD}")
    _refuse_tower(vision)
    if not hf and config.get("ps_version", "v1") != "v2":
        raise ModelError("this is an InternVL before version 2 (ps_version is not v2); " + _INSTEAD)
    sizes = decoder_sizes(text, f"config.json: {key}", kind)
    if sizes.kind == "mistral":
        raise ModelError(f"an InternVL with a decoder of type mistral is not built; {_INSTEAD}")
    decoder = "qwen2" if sizes.kind == "qwen2" else "internlm2"
    image_id = _QWEN2_IMAGE_ID if sizes.vocab_size == _QWEN2_VOCABULARY else _IMAGE_IDS[decoder]
    template = config.get("template")
    if template is not None and template not in get_args(Template):
        raise ModelError(f"config.json: the chat format {template!r} is not known ({', '.join(get_args(Template))})")
    return InternVLShape(
        image_size=_side(config.get("force_image_size") or vision.get("image_size", 448)),
        patch_size=_side(vision.get("patch_size", 14)),
        vision_dim=int(vision.get("hidden_size", 1024)),
        vision_layers=int(vision.get("num_hidden_layers", 24)),
        vision_heads=int(vision.get("num_attention_heads", 16)),
        vision_mlp_dim=int(vision.get("intermediate_size", 4096)),
        decoder=decoder,  # type: ignore[arg-type]
        image_id=int(config.get("image_token_id", image_id)),
        layer_scale=float(vision.get("layer_scale_init_value", vision.get("initializer_factor", 0.1))),
        template=template,
        **sizes.fields(),
    )


def tie_flag(config: Mapping[str, Any]) -> bool | None:
    """``tie_word_embeddings`` where it counts: at the top in transformers' layout, of the decoder in the other."""
    hf = config.get("model_type") == MODEL_TYPES["hf"]
    found = config.get("tie_word_embeddings") if hf else _part(config, "llm_config").get("tie_word_embeddings")
    return found if isinstance(found, bool) else None


def _part(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = config.get(key)
    if not isinstance(found, Mapping):
        raise ModelError(f"config.json has no {key}; download it again")
    return found


def _refuse_tower(vision: Mapping[str, Any]) -> None:
    """The vision transformer of 6B parameters has RMS norms, also on queries and keys."""
    if (
        vision.get("norm_type", "layer_norm") != "layer_norm"
        or vision.get("qk_normalization")
        or vision.get("use_qk_norm")
    ):
        wide = vision.get("hidden_size")
        raise ModelError(
            f"this is an InternVL with the vision transformer of 6B parameters (hidden_size {wide}, RMS norms on q and "
            f"k), which medtune does not build; {_INSTEAD}"
        )


def _side(value: Any) -> int:
    first = value[0] if isinstance(value, list | tuple) and value else value
    if not isinstance(first, int) or isinstance(first, bool):
        raise ModelError(f"config.json: a size of images is {value!r}; download the file again")
    return first
