"""Converter of Llama-3.2-Vision weights between torchtune's names and the published layout."""

from functools import partial

from torchtune.models.llama3_2_vision._convert_weights import llama3_vision_hf_to_tune, llama3_vision_tune_to_hf

from medtune.models.common.family import ModelFamily, StateDict
from medtune.models.common.names import with_other_beginning
from medtune.models.llama3_2_vision._shape import DeepFusionShape

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.model",
    "original/tokenizer.model",
    "chat_template.json",
    "chat_template.jinja",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
)
_LIVE_PREFIXES = (
    ("model.language_model.", "language_model.model."),
    ("model.vision_model.", "vision_model."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("lm_head.", "language_model.lm_head."),
)


def disk_name(name: str) -> str:
    """The name in a published file of a tensor that may have another name in a live transformers 5 module."""
    return with_other_beginning(name, _LIVE_PREFIXES)


def live_name(name: str) -> str:
    """The name in a live transformers 5 module of a tensor in a published file; the inverse of :func:`disk_name`."""
    return with_other_beginning(name, ((disk, live) for live, disk in _LIVE_PREFIXES))


def _sizes(shape: DeepFusionShape) -> dict:
    return {
        "num_heads": shape.heads,
        "num_kv_heads": shape.kv_heads,
        "dim": shape.dim,
        "vocab_size": shape.vocab_size,
        "cross_attention_layers": shape.cross_attention_layers,
        "encoder_dim": shape.vision_dim,
        "tile_size": shape.image_size,
        "num_tiles": shape.table_tiles,
        "supported_aspect_ratios": shape.aspect_ratios,
    }


def hf_to_tune(state: StateDict, *, shape: DeepFusionShape) -> StateDict:
    """From published names to torchtune's.

    Tables of tile positions are read from the grids with rows * columns = ``table_tiles``. In every published
    checkpoint the other grids repeat the same values.

    Args:
        state: tensors by their name on disk, or by that of a live transformers 5 module.
        shape: sizes of the model.
    """
    return llama3_vision_hf_to_tune({disk_name(name): tensor for name, tensor in state.items()}, **_sizes(shape))


def tune_to_hf(state: StateDict, *, shape: DeepFusionShape) -> StateDict:
    """From torchtune's names to the published names, as in a file.

    Args:
        state: tensors by state-dict key, with adapters merged.
        shape: sizes of the model.
    """
    return llama3_vision_tune_to_hf(state, **_sizes(shape))


def hf_config(shape: DeepFusionShape) -> dict:
    """Contents of ``config.json`` for a model of this shape.

    ``intermediate_layers_indices`` follows the published convention (inputs of those layers). Since 2025
    transformers reads the outputs of the same layers, for the published weights and for these.
    """
    text = {
        "model_type": "mllama_text_model",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.dim,
        "hidden_act": "silu",
        "num_hidden_layers": shape.layers + len(shape.cross_attention_layers),
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "intermediate_size": shape.mlp_dim,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": shape.max_seq_len,
        "cross_attention_layers": shape.cross_attention_layers,
        "tie_word_embeddings": False,
        "bos_token_id": shape.bos_id,
        "eos_token_id": shape.eos_id,
        "pad_token_id": shape.pad_id,
        "rope_theta": shape.rope_base,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    }
    vision = {
        "model_type": "mllama_vision_model",
        "hidden_size": shape.vision_dim,
        "hidden_act": "gelu",
        "num_hidden_layers": shape.vision_layers,
        "num_global_layers": shape.projection_layers,
        "attention_heads": shape.vision_heads,
        "intermediate_size": 4 * shape.vision_dim,
        "vision_output_dim": shape.vision_dim * (len(shape.hidden_states) + 1),
        "image_size": shape.image_size,
        "patch_size": shape.patch_size,
        "norm_eps": 1e-5,
        "max_num_tiles": shape.table_tiles,
        "intermediate_layers_indices": list(shape.hidden_states),
        "supported_aspect_ratios": [list(grid) for grid in shape.aspect_ratios],
    }
    return {
        "architectures": ["MllamaForConditionalGeneration"],
        "model_type": "mllama",
        "image_token_index": shape.vocab_size,
        "text_config": text,
        "vision_config": vision,
    }


def _saved_config(shape: DeepFusionShape) -> dict:
    """``config.json`` as current versions of transformers save it after loading with outputs of layers as indices."""
    config = hf_config(shape)
    return {
        **config,
        "vision_config": {
            **config["vision_config"],
            "intermediate_layers_indices": [layer - 1 for layer in shape.hidden_states],
        },
    }


def deep_fusion_family(name: str, shape: DeepFusionShape) -> ModelFamily:
    """Converters and config of one model of this shape."""
    return ModelFamily(
        name=name,
        model_type="mllama",
        hf_to_tune=partial(hf_to_tune, shape=shape),
        tune_to_hf=partial(tune_to_hf, shape=shape),
        hf_config=partial(hf_config, shape),
        layouts=(partial(_saved_config, shape),),
        live_name=live_name,
        tokenizer_files=TOKENIZER_FILES,
    )
