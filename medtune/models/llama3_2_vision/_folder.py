"""Llama-3.2-Vision from a downloaded folder, of any size."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medtune.errors import ModelError
from medtune.models.common.deep_fusion import DeepFusionVLM
from medtune.models.common.folder import FolderFamily, LoraArguments
from medtune.models.llama3_2_vision._component_builders import LoraOptions, deep_fusion_vlm
from medtune.models.llama3_2_vision._encoder import EncoderMode
from medtune.models.llama3_2_vision._images import ResizeMode
from medtune.models.llama3_2_vision._model_builders import SCALER_BLOCK
from medtune.models.llama3_2_vision._shape import DeepFusionShape
from medtune.models.llama3_2_vision._tokenizer import llama3_chat_tokenizer
from medtune.models.llama3_2_vision._transform import DeepFusionTransform
from medtune.models.published_config import rope_of

# What a config.json of transformers leaves out has these values.
_TEXT = {
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "num_hidden_layers": 40,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14_336,
    "max_position_embeddings": 131_072,
    "bos_token_id": 128_000,
    "eos_token_id": 128_001,
    "pad_token_id": 128_004,
}
_VISION = {
    "hidden_size": 1280,
    "num_hidden_layers": 32,
    "num_global_layers": 8,
    "attention_heads": 16,
    "image_size": 448,
    "patch_size": 14,
    "max_num_tiles": 4,
}
_FUSED = [3, 8, 13, 18, 23, 28, 33, 38]
_READ = [3, 7, 15, 23, 30]


def shape_from_config(config: Mapping[str, Any]) -> DeepFusionShape:
    """The sizes that a ``config.json`` describes.

    Args:
        config: contents of the file. Keys that it lacks have transformers' default values. Its
            ``intermediate_layers_indices`` are read as in the published files (inputs of these layers), and those that
            transformers saves for the outputs of the same layers of the published models as what they mean.

    Raises:
        ModelError: if a value is not a number, or the fusion layers do not stand at equal distances.
    """
    text, vision = config.get("text_config", {}), config.get("vision_config", {})
    if not isinstance(text, Mapping) or not isinstance(vision, Mapping):
        raise ModelError("config.json: text_config and vision_config must be mappings; download it again")
    words, sight = _numbers(text, _TEXT, "text_config"), _numbers(vision, _VISION, "vision_config")
    fused = text.get("cross_attention_layers", _FUSED)
    read = vision.get("intermediate_layers_indices", _READ)
    for key, value in (("cross_attention_layers", fused), ("intermediate_layers_indices", read)):
        if not isinstance(value, list) or not value or not all(isinstance(item, int) for item in value):
            raise ModelError(f"config.json: {key} must list layers, got {value!r}; download it again")
    if read == [layer - 1 for layer in _READ]:
        read = _READ
    shape = DeepFusionShape(
        image_size=sight["image_size"],
        patch_size=sight["patch_size"],
        vision_dim=sight["hidden_size"],
        vision_layers=sight["num_hidden_layers"],
        vision_heads=sight["attention_heads"],
        hidden_states=tuple(read),
        projection_layers=sight["num_global_layers"],
        table_tiles=sight["max_num_tiles"],
        dim=words["hidden_size"],
        layers=words["num_hidden_layers"] - len(fused),
        fusion_interval=fused[0] + 1,
        heads=words["num_attention_heads"],
        kv_heads=words["num_key_value_heads"],
        intermediate_dim=words["intermediate_size"],
        vocab_size=words["vocab_size"],
        max_seq_len=words["max_position_embeddings"],
        rope_base=float(rope_of(text).get("rope_theta", 500_000.0)),
        bos_id=words["bos_token_id"],
        eos_id=words["eos_token_id"],
        pad_id=words["pad_token_id"],
    )
    if shape.cross_attention_layers != fused:
        raise ModelError(
            f"config.json: the fusion layers {fused} do not stand at equal distances, as medtune's builder needs them"
        )
    return shape


def _numbers(given: Mapping[str, Any], defaults: Mapping[str, int], where: str) -> dict[str, int]:
    values = {**defaults, **{key: value for key, value in given.items() if key in defaults and value is not None}}
    if "num_attention_heads" in given and "attention_heads" in defaults:  # as transformers 5 may write it
        values["attention_heads"] = given["num_attention_heads"]
    for key, value in values.items():
        first = value[0] if isinstance(value, list) and value else value  # some files list several end tokens
        if not isinstance(first, int) or isinstance(first, bool) or first < 0:
            raise ModelError(f"config.json: {where}.{key} must be a whole number, got {value!r}; download it again")
        values[key] = first
    return values


def _build(
    name: str,
    shape: DeepFusionShape,
    config: dict[str, Any],
    lora: LoraArguments | None,
    encoder_mode: EncoderMode = "checkpoint",
    pad_tiles: int | None = None,
    hf_rows: bool = False,
) -> DeepFusionVLM:
    options = None
    if lora is not None:
        block = SCALER_BLOCK if lora["quantize_base"] and shape.vision_dim == _VISION["hidden_size"] else None
        options = LoraOptions.from_arguments(lora, scaler_block_size=block)
    return deep_fusion_vlm(name, shape, encoder_mode=encoder_mode, pad_tiles=pad_tiles, hf_rows=hf_rows, lora=options)


def _transform(
    folder: Path,
    shape: DeepFusionShape,
    config: dict[str, Any],
    max_seq_len: int = 8192,
    max_num_tiles: int = 1,
    resize: ResizeMode | None = None,
    supervise_header: bool = False,
) -> DeepFusionTransform:
    tokenizer = llama3_chat_tokenizer(folder)
    if tokenizer.image_id != shape.vocab_size:
        raise ModelError(
            f"the tokenizer of {folder} has the image token {tokenizer.image_id}, the model {shape.vocab_size}: it "
            "belongs to another model; take all files from one download"
        )
    return DeepFusionTransform(
        tokenizer,
        image_size=shape.image_size,
        patch_size=shape.patch_size,
        max_num_tiles=max_num_tiles,
        max_seq_len=max_seq_len,
        resize=resize,
        supervise_header=supervise_header,
    )


def _describe(shape: DeepFusionShape) -> str:
    fused = len(shape.cross_attention_layers)
    return (
        f"decoder Llama ({shape.layers} layers and {fused} fusion layers, {shape.dim} wide, {shape.heads} heads, "
        f"{shape.kv_heads} key/value heads), tiles of {shape.image_size} pixels outside of the text"
    )


FAMILY = FolderFamily(
    "Llama-3.2-Vision", lambda config, folder: shape_from_config(config), _build, _transform, _describe
)
