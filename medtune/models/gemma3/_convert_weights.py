"""Converter of Gemma 3 weights between torchtune's names and the published ones.

Published files have the names of transformers before 4.52 (``language_model.model.``, ``vision_tower.vision_model.``).
transformers 5 leaves out the level ``vision_model`` when it writes files, and its live modules have names of their own.
All of them are read; the published names are written.
"""

from functools import partial

from medtune.errors import ModelError
from medtune.models.common.decoder_names import CLIP_MAPS, CLIP_NORMS, DECODER_MAPS
from medtune.models.common.family import ModelFamily, StateDict
from medtune.models.common.names import with_other_beginning
from medtune.models.common.tied import without_copy
from medtune.models.gemma3._config import MODEL_TYPE, hf_config
from medtune.models.gemma3._shape import Gemma3Shape

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "chat_template.jinja",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
)
_TOWER, _PROJECTION, _DECODER = "vision_tower.vision_model.", "multi_modal_projector.", "language_model."
_HEAD, _WORDS = f"{_DECODER}lm_head.weight", f"{_DECODER}model.embed_tokens.weight"
# The first match counts.
_OTHER_NAMES = (
    ("model.vision_tower.", "vision_tower."),
    ("model.multi_modal_projector.", _PROJECTION),
    ("model.language_model.", f"{_DECODER}model."),
    ("lm_head.", f"{_DECODER}lm_head."),
)
_LIVE_PREFIXES = (
    (_TOWER, "model.vision_tower."),
    (_PROJECTION, "model.multi_modal_projector."),
    (f"{_DECODER}model.", "model.language_model."),
    (f"{_DECODER}lm_head.", "lm_head."),
)
# A layer has four norms, and norms of queries and keys.
_DECODER_LAYER = {f"{ours}.weight": f"{theirs}.weight" for ours, theirs in DECODER_MAPS.items()} | {
    "attn.q_norm.scale": "self_attn.q_norm.weight",
    "attn.k_norm.scale": "self_attn.k_norm.weight",
    "sa_norm.scale": "input_layernorm.weight",
    "sa_scale.scale": "post_attention_layernorm.weight",
    "mlp_norm.scale": "pre_feedforward_layernorm.weight",
    "mlp_scale.scale": "post_feedforward_layernorm.weight",
}


def disk_name(name: str) -> str:
    """The name in a published file of a tensor that may have another name in a live module or a newer file."""
    name = with_other_beginning(name, _OTHER_NAMES)
    if name.startswith("vision_tower.") and not name.startswith(_TOWER):
        return _TOWER + name.removeprefix("vision_tower.")
    return name


def live_name(name: str) -> str:
    """The name in a live transformers 5 module of a tensor in a published file; the inverse of :func:`disk_name`."""
    return with_other_beginning(name, _LIVE_PREFIXES)


def tensor_names(shape: Gemma3Shape) -> dict[str, str]:
    """Every tensor of the model: its published name -> torchtune's state-dict key. All have the same layout in both."""
    vision = "encoder.vision."
    names = {
        f"{_TOWER}embeddings.position_embedding.weight": f"{vision}positions",
        f"{_PROJECTION}mm_input_projection_weight": "encoder.projection.weight",
        f"{_PROJECTION}mm_soft_emb_norm.weight": "encoder.projection.norm.scale",
        _WORDS: "decoder.tok_embeddings.weight",
        f"{_DECODER}model.norm.weight": "decoder.norm.scale",
    }
    for side in ("weight", "bias"):
        names[f"{_TOWER}embeddings.patch_embedding.{side}"] = f"{vision}conv.{side}"
        names[f"{_TOWER}post_layernorm.{side}"] = f"{vision}norm.{side}"
        for layer in range(shape.vision_layers):
            for ours, theirs in (CLIP_MAPS | CLIP_NORMS).items():
                names[f"{_TOWER}encoder.layers.{layer}.{theirs}.{side}"] = f"{vision}layers.{layer}.{ours}.{side}"
    for layer in range(shape.layers):
        for ours, theirs in _DECODER_LAYER.items():
            names[f"{_DECODER}model.layers.{layer}.{theirs}"] = f"decoder.layers.{layer}.{ours}"
    return names


def hf_to_tune(state: StateDict, *, shape: Gemma3Shape) -> StateDict:
    """From published names to torchtune's.

    Args:
        state: tensors by their name on disk, or by that of a live transformers module. An output layer is left out,
            because it is the embedding table.
        shape: sizes of the model.

    Raises:
        ModelError: if a tensor does not belong to this model or occurs twice, or if the output layer has values of its
            own.
    """
    plain = {disk_name(name): tensor for name, tensor in state.items()}
    if len(plain) < len(state):
        twice = next(name for name in state if state[name] is not plain[disk_name(name)])
        raise ModelError(f"it holds {disk_name(twice)} twice, under two names (one is {twice}); remove one file")
    plain = without_copy(plain, [_HEAD], [_WORDS])
    names = tensor_names(shape)
    unknown = sorted(plain.keys() - names.keys())
    if unknown:
        raise ModelError(f"{len(unknown)} tensors that the model does not have (first: {unknown[0]}); check its size")
    return {names[name]: tensor for name, tensor in plain.items()}


def tune_to_hf(state: StateDict, *, shape: Gemma3Shape) -> StateDict:
    """From torchtune's names to the published names, as in a file; there is no output layer.

    Args:
        state: tensors by state-dict key, with adapters merged.
        shape: sizes of the model.
    """
    names = {ours: theirs for theirs, ours in tensor_names(shape).items()}
    return {names[key]: tensor for key, tensor in state.items()}


def gemma3_family(name: str, shape: Gemma3Shape) -> ModelFamily:
    """Converters and config of one model of this shape."""
    return ModelFamily(
        name=name,
        model_type=MODEL_TYPE,
        hf_to_tune=partial(hf_to_tune, shape=shape),
        tune_to_hf=partial(tune_to_hf, shape=shape),
        hf_config=partial(hf_config, shape),
        live_name=live_name,
        tokenizer_files=TOKENIZER_FILES,
    )
