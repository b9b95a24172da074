"""``config.json`` of LLaVA models, in the published layout and the authors': written from a shape, read into one."""

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from medtune.errors import ModelError
from medtune.models.common.decoder_config import decoder_sizes
from medtune.models.common.family import ModelFamily
from medtune.models.llava._convert_weights import (
    TOKENIZER_FILES,
    hf_to_tune,
    live_name,
    original_name,
    tune_to_hf,
)
from medtune.models.llava._shape import DecoderKind, Layout, LlavaShape

# The authors' classes and types by decoder.
AUTHORS: dict[DecoderKind, tuple[str, str]] = {
    "llama": ("LlavaLlamaForCausalLM", "llava_llama"),
    "mistral": ("LlavaMistralForCausalLM", "llava_mistral"),
    "qwen2": ("LlavaQwen2ForCausalLM", "llava_qwen2"),
}
_KINDS = {model_type: kind for kind, (_, model_type) in AUTHORS.items()}
_PUBLISHED = "llava"
_TOWER = "openai/clip-vit-large-patch14-336"
# CLIP ViT-L/14, the vision transformer that config.json of the authors' layout names without its sizes.
_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 14}
_CLIP = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "patch_size": 32, "image_size": 224}
_INSTEAD = "predict can ask such a model through a backend (predict/transformers_local, predict/openai_server)"


def _text(shape: LlavaShape) -> dict:
    config = {
        "model_type": shape.decoder,
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.dim,
        "intermediate_size": shape.mlp_dim,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "hidden_act": "silu",
        "rms_norm_eps": shape.norm_eps,
        "rope_theta": shape.rope_base,
        "max_position_embeddings": shape.max_seq_len,
        "tie_word_embeddings": shape.tied,
        "bos_token_id": shape.bos_id,
        "eos_token_id": shape.eos_id,
        "pad_token_id": shape.pad_id,
    }
    return config | ({"sliding_window": None} if shape.decoder == "mistral" else {})


def _vision(shape: LlavaShape) -> dict:
    return {
        "model_type": "clip_vision_model",
        "hidden_size": shape.vision_dim,
        "intermediate_size": 4 * shape.vision_dim,
        "num_hidden_layers": shape.vision_layers,
        "num_attention_heads": shape.vision_heads,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "image_size": shape.image_size,
        "patch_size": shape.patch_size,
        "projection_dim": 768,
    }


def hf_config(shape: LlavaShape) -> dict:
    """Contents of ``config.json`` for a model of this shape."""
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": _PUBLISHED,
        "image_token_index": shape.image_id,
        "image_seq_length": shape.tokens_per_image,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": shape.tied,
        "pad_token_id": shape.pad_id,
        "text_config": _text(shape),
        "vision_config": _vision(shape),
    }


def original_config(shape: LlavaShape) -> dict:
    """Contents of ``config.json`` in the authors' layout, whose vocabulary ends before the image token.

    ``unfreeze_mm_vision_tower`` makes the authors' code read the tower from the file. ``vision_config`` is written for
    towers that ``mm_vision_tower`` does not tell; it is not read by that code.
    """
    class_name, model_type = AUTHORS[shape.decoder]
    vision, pad = _vision(shape), shape.pad_id
    large = {**_LARGE, "image_size": 336}
    return {
        **{key: value for key, value in _text(shape).items() if key != "model_type"},
        "architectures": [class_name],
        "model_type": model_type,
        "vocab_size": shape.image_id,
        "pad_token_id": pad if pad < shape.image_id else 0,
        "mm_hidden_size": shape.vision_dim,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_tower": _TOWER,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "image_aspect_ratio": "pad",
        "unfreeze_mm_vision_tower": True,
        **({} if all(vision[key] == value for key, value in large.items()) else {"vision_config": vision}),
    }


def compared_original_config(shape: LlavaShape) -> dict:
    """What :func:`original_config` says of the model itself; where its tower and its pictures come from may differ."""
    free = ("mm_vision_tower", "image_aspect_ratio", "unfreeze_mm_vision_tower", "vision_config", "vocab_size")
    return {key: value for key, value in original_config(shape).items() if key not in free}


def llava_family(name: str, shape: LlavaShape, layout: Layout = "hf") -> ModelFamily:
    """Converters and config of one model of this shape.

    Args:
        name: family and size, for messages.
        shape: sizes.
        layout: published layout of exports.

    Raises:
        ModelError: if ``layout`` is unknown.
    """
    if layout not in ("hf", "original"):
        raise ModelError(f"{name}: layout must be one of hf, original, got {layout!r}")
    authors = AUTHORS[shape.decoder][1]
    published = layout == "hf"
    return ModelFamily(
        name=name,
        model_type=_PUBLISHED if published else authors,
        also_reads=(authors,) if published else (_PUBLISHED,),
        hf_to_tune=partial(hf_to_tune, shape=shape),
        tune_to_hf=partial(tune_to_hf, shape=shape, layout=layout),
        hf_config=partial(hf_config if published else original_config, shape),
        layouts=(partial(compared_original_config, shape), partial(hf_config, shape)),
        live_name=live_name if published else original_name,
        tokenizer_files=TOKENIZER_FILES,
    )


def authors_layout(config: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` is of the authors' layout; LLaVA-1.5's own files have the type ``llava`` too."""
    classes = {class_name for class_name, _ in AUTHORS.values()}
    named = config.get("architectures")
    return config.get("model_type") != _PUBLISHED or (isinstance(named, list) and bool(classes & {*map(str, named)}))


def tie_flag(config: Mapping[str, Any]) -> bool | None:
    """``tie_word_embeddings``; in transformers' layout that of the decoder counts too."""
    text = config.get("text_config")
    inner = text.get("tie_word_embeddings") if isinstance(text, Mapping) else None
    found = config.get("tie_word_embeddings") or inner
    return found if isinstance(found, bool) else None


def shape_from_config(config: Mapping[str, Any]) -> LlavaShape:
    """The sizes that a ``config.json`` describes, in either layout.

    Args:
        config: contents of the file. Keys that it lacks have transformers' default values. A vocabulary of the authors'
            layout gets rows for the image token and up to a multiple of 64, as in llava-hf's weights.

    Raises:
        ModelError: naming the key, if the family does not cover the model: another vision tower, projection or decoder,
            image features of another layer, LLaVA-NeXT's grids.
    """
    return _from_original(config) if authors_layout(config) else _from_hf(config)


def _from_hf(config: Mapping[str, Any]) -> LlavaShape:
    text, vision = config.get("text_config", {}), config.get("vision_config", {})
    if not isinstance(text, Mapping) or not isinstance(vision, Mapping):
        raise ModelError("config.json: text_config and vision_config must be mappings; download it again")
    tower = vision.get("model_type", "clip_vision_model")
    if tower != "clip_vision_model":
        raise ModelError(
            f"this is a LLaVA with a vision tower of type {tower!r}, not CLIP's, for which medtune has no builder; "
            f"{_INSTEAD}"
        )
    sizes = decoder_sizes(text, "config.json: text_config")
    image_id = config.get("image_token_index", config.get("image_token_id", 32_000))
    return _shape(sizes, {**_CLIP, **vision}, image_id=image_id, vocab_size=sizes.vocab_size)


def _from_original(config: Mapping[str, Any]) -> LlavaShape:
    named = config.get("architectures")
    classes = {class_name: kind for kind, (class_name, _) in AUTHORS.items()}
    kind = _KINDS.get(str(config.get("model_type")))
    if kind is None:
        kind = next((classes[name] for name in named or () if name in classes), "llama")
    if str(config.get("image_aspect_ratio", "")).startswith("anyres"):
        raise ModelError(
            f"this is a LLaVA-NeXT (image_aspect_ratio is {config['image_aspect_ratio']!r}: grids of any resolution), "
            f"for which medtune has no builder; {_INSTEAD}"
        )
    projector = config.get("mm_projector_type", "linear")
    if projector == "cluster":
        raise ModelError("this is an SQ-LLaVA; set model._component_ to medtune.models.sq_llava.sq_llava_7b")
    if projector != "mlp2x_gelu":
        raise ModelError(
            f"this is a LLaVA with a projection of type {projector!r}; medtune builds mlp2x_gelu, that of LLaVA-1.5. "
            f"{_INSTEAD}"
        )
    vision = config.get("vision_config")
    tower = vision if isinstance(vision, Mapping) else _tower(str(config.get("mm_vision_tower", "")))
    sizes = decoder_sizes({**config, "model_type": kind}, "config.json")
    rows = -(-(sizes.vocab_size + 2) // 64) * 64
    return _shape(sizes, {**_CLIP, **tower}, image_id=sizes.vocab_size, vocab_size=rows)


def _tower(name: str) -> Mapping[str, Any]:
    """Sizes of the vision transformer that a config names: CLIP ViT-L/14 for 224 or 336 pixels, from any folder."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower().rstrip("/").rpartition("/")[2])
    found = re.fullmatch(r"clip-vit-(?:large|l)-(?:patch)?14(-336|-336px)?", plain)
    if found is None:
        raise ModelError(
            f"this is a LLaVA with the vision tower {name!r}; medtune builds CLIP ViT-L/14 (openai/clip-vit-large-"
            f"patch14-336 or -patch14). {_INSTEAD}"
        )
    return {**_LARGE, "image_size": 336 if found[1] else 224}


def _shape(sizes: Any, vision: Mapping[str, Any], *, image_id: Any, vocab_size: int) -> LlavaShape:
    numbers = {key: vision[key] for key in ("image_size", "patch_size", "hidden_size", "num_hidden_layers")}
    numbers |= {"num_attention_heads": vision["num_attention_heads"], "image_token_index": image_id}
    for key, value in numbers.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ModelError(f"config.json: {key} must be a positive whole number, got {value!r}; download it again")
    if sizes.kind == "internlm2":
        raise ModelError(f"a LLaVA with a decoder of type internlm2 is not built; {_INSTEAD}")
    fields = sizes.fields()
    return LlavaShape(
        image_size=numbers["image_size"],
        patch_size=numbers["patch_size"],
        vision_dim=numbers["hidden_size"],
        vision_layers=numbers["num_hidden_layers"],
        vision_heads=numbers["num_attention_heads"],
        image_id=image_id,
        intermediate_dim=fields.pop("mlp_dim"),
        decoder=sizes.kind,
        **{**fields, "vocab_size": vocab_size},
    )
