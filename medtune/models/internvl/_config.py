"""Contents of ``config.json`` for models of the InternVL family, in both published layouts."""

from medtune.models.internvl._shape import SHUFFLE, InternVLShape, Layout

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
        "tie_word_embeddings": False,
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
        "template": "internlm2-chat" if shape.decoder == "internlm2" else "internvl2_5",
        "dynamic_image_size": True,
        "use_thumbnail": True,
        "min_dynamic_patch": 1,
        "max_dynamic_patch": 12,
        "tie_word_embeddings": False,
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
        "tie_word_embeddings": False,
        "bos_token_id": shape.bos_id,
        "eos_token_id": shape.eos_id,
        "pad_token_id": shape.pad_id,
    }
    bias = {"llama": {"attention_bias": False, "mlp_bias": False}, "internlm2": {"bias": False}, "qwen2": {}}
    return config | bias[kind]
