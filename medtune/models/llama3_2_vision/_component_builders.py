"""Build modules from sizes: torchtune's component builders, with medtune's encoder and corrections."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Self

from torch import nn
from torchtune.models.clip import clip_vision_encoder
from torchtune.models.clip._component_builders import lora_clip_vision_encoder
from torchtune.models.clip._position_embeddings import TiledTokenPositionalEmbedding, TilePositionalEmbedding
from torchtune.models.llama3_2_vision import llama3_2_vision_decoder, lora_llama3_2_vision_decoder
from torchtune.models.llama3_2_vision._component_builders import (
    llama3_2_vision_projection_head,
    lora_llama3_2_vision_projection_head,
)
from torchtune.modules import MultiHeadAttention, TransformerDecoder
from torchtune.modules.common_utils import reparametrize_as_dtype_state_dict_post_hook
from torchtune.modules.model_fusion import FusionLayer

from medtune.errors import ModelError
from medtune.models.common.deep_fusion import DeepFusionVLM
from medtune.models.llama3_2_vision._convert_weights import deep_fusion_family
from medtune.models.llama3_2_vision._encoder import EncoderMode, VisionEncoder
from medtune.models.llama3_2_vision._fusion import correct_fusion_layers
from medtune.models.llama3_2_vision._peft import adapters_from_peft, adapters_to_peft
from medtune.models.llama3_2_vision._shape import DeepFusionShape
from medtune.models.lora.finish import finish
from medtune.models.lora.options import ATTENTION, AdapterOptions, adapt

LORA_PARTS = ("vision", "fusion", "decoder")


@dataclass(frozen=True)
class LoraOptions(AdapterOptions):
    """Options of Llama-3.2-Vision's adapters; ``output`` includes the last layer of the projection.

    Attributes:
        scaler_block_size: block size of NF4's second quantisation in the encoder; None is torchao's default.
    """

    known_parts: ClassVar[tuple[str, ...]] = ("vision", "projection", "fusion", "decoder")
    without_effect: ClassVar[Mapping[str, tuple[str, ...]]] = {"vision": ("output",)}

    parts: tuple[str, ...] | Mapping[str, Mapping[str, Any] | None] = LORA_PARTS
    scaler_block_size: int | None = None

    def for_part(self, part: str) -> Self | None:
        """The options of one part, or None. A projection that is not named takes the options of ``fusion``."""
        return super().for_part("fusion" if part == "projection" and part not in self.parts else part)


def vision_encoder(
    shape: DeepFusionShape, *, mode: EncoderMode, pad_tiles: int, lora: LoraOptions | None = None
) -> VisionEncoder:
    """Build the vision transformer and its projection.

    Args:
        shape: sizes.
        mode: see :class:`VisionEncoder`.
        pad_tiles: tiles that ``checkpoint`` mode pads each image to.
        lora: adapters, or None for a plain model.

    Raises:
        ModelError: if ``pad_tiles`` exceeds the tables of tile positions.
    """
    if not 1 <= pad_tiles <= shape.table_tiles:
        raise ModelError(f"tiles per image must lie between 1 and {shape.table_tiles}; got {pad_tiles}")
    clip = _clip(shape, lora.for_part("vision") if lora is not None else None)
    projection = _projection(shape, lora.for_part("projection") if lora is not None else None)
    for module in (*clip.modules(), *projection.modules()):
        if isinstance(module, MultiHeadAttention):
            module.is_causal = False  # torchtune's builders of adapted layers leave the default True
    _complete_tile_positions(clip, shape)
    encoder = VisionEncoder(clip, projection, mode=mode, pad_tiles=pad_tiles)
    if lora is not None and lora.quantize_base:
        # as torchtune's builder does for its encoder, so that state dicts hold dense weights
        encoder._register_state_dict_hook(partial(reparametrize_as_dtype_state_dict_post_hook, offload_to_cpu=True))
    return encoder


def _clip(shape: DeepFusionShape, lora: LoraOptions | None) -> nn.Module:
    sizes = {
        "tile_size": shape.image_size,
        "patch_size": shape.patch_size,
        "embed_dim": shape.vision_dim,
        "num_layers": shape.vision_layers,
        "num_heads": shape.vision_heads,
        "activation": nn.GELU,
        "out_indices": list(shape.hidden_states),
        "max_num_tiles": shape.table_tiles,
        "in_channels": 3,
        "attn_bias": False,
        "output_cls_projection": False,
    }
    return clip_vision_encoder(**sizes) if lora is None else lora_clip_vision_encoder(**sizes, **_encoder_lora(lora))


def _projection(shape: DeepFusionShape, lora: LoraOptions | None) -> nn.Module:
    sizes = {
        "num_layers": shape.projection_layers,
        "num_heads": shape.vision_heads,
        "decoder_embed_dim": shape.dim,
        "clip_embed_dim": shape.vision_dim,
        "num_hidden_inputs": len(shape.hidden_states),
    }
    if lora is None:
        return llama3_2_vision_projection_head(**sizes)
    return lora_llama3_2_vision_projection_head(apply_lora_to_output=lora.output, **sizes, **_encoder_lora(lora))


def _encoder_lora(lora: LoraOptions) -> dict[str, Any]:
    """Options under the argument names of torchtune's builders of vision transformer and projection."""
    options = lora.torchtune()
    del options["apply_lora_to_output"]
    options["lora_modules"] = options.pop("lora_attn_modules")
    return options | ({"scaler_block_size": lora.scaler_block_size} if lora.scaler_block_size else {})


def _complete_tile_positions(clip: nn.Module, shape: DeepFusionShape) -> None:
    if shape.table_tiles == 1:
        # torchtune omits the tile positions of a one-tile model, but the published layout always has them
        clip.pre_tile_pos_embed = TilePositionalEmbedding(1, shape.vision_dim)
        clip.post_tile_pos_embed = TilePositionalEmbedding(1, shape.vision_dim)
        clip.token_pos_embedding = TiledTokenPositionalEmbedding(
            1, shape.vision_dim, tile_size=shape.image_size, patch_size=shape.patch_size
        )


def fusion_decoder(
    shape: DeepFusionShape, *, hf_rows: bool = False, lora: LoraOptions | None = None
) -> TransformerDecoder:
    """Build the language model with its fusion layers.

    Args:
        shape: sizes.
        hf_rows: transformers' rule for text before the first image (see :class:`OpenRowsCrossAttention`).
        lora: adapters, or None for a plain model.
    """
    sizes = {
        "vocab_size": shape.vocab_size,
        "num_layers": shape.layers,
        "fusion_interval": shape.fusion_interval,
        "num_special_tokens": shape.special_tokens,
        "num_heads": shape.heads,
        "num_kv_heads": shape.kv_heads,
        "embed_dim": shape.dim,
        "max_seq_len": shape.max_seq_len,
        "encoder_max_seq_len": shape.encoder_max_seq_len,
        "rope_base": shape.rope_base,
        "intermediate_dim": shape.mlp_dim,
    }
    decoder = llama3_2_vision_decoder(**sizes) if lora is None else _adapted_decoder(lora, sizes)
    correct_fusion_layers(decoder, hf_rows=hf_rows)
    return decoder


def _adapted_decoder(lora: LoraOptions, sizes: dict[str, Any]) -> TransformerDecoder:
    """By torchtune's builder, which knows one set of options; fusion layers with others are adapted after it."""
    text, fusion = lora.for_part("decoder"), lora.for_part("fusion")
    options = text or fusion or lora
    alike = fusion is not None and fusion.same_as(options)
    decoder = lora_llama3_2_vision_decoder(
        decoder_lora=text is not None, fusion_lora=alike, **options.torchtune(), **sizes
    )
    if fusion is not None and not alike:
        for layer in decoder.layers:
            if isinstance(layer, FusionLayer):
                _adapt_layer(layer.fusion_layer, fusion)
    return decoder


def _adapt_layer(layer: Any, lora: LoraOptions) -> None:
    for name in ATTENTION:
        adapt(layer.attn, name, lora, adapted=name in lora.attn_modules)
    for name in ("w1", "w2", "w3"):
        adapt(layer.mlp, name, lora, adapted=lora.mlp)


def deep_fusion_vlm(
    name: str,
    shape: DeepFusionShape,
    *,
    encoder_mode: EncoderMode = "checkpoint",
    pad_tiles: int | None = None,
    hf_rows: bool = False,
    lora: LoraOptions | None = None,
) -> DeepFusionVLM:
    """Build a complete model of the Llama-3.2-Vision architecture.

    Args:
        name: family and size, for messages.
        shape: sizes.
        encoder_mode: see :class:`VisionEncoder`.
        pad_tiles: tiles that ``checkpoint`` mode pads each image to; None is the size of the position tables.
        hf_rows: transformers' rule for text before the first image.
        lora: adapters; with them nothing else is trainable.
    """
    tiles = shape.table_tiles if pad_tiles is None else pad_tiles
    model = DeepFusionVLM(
        fusion_decoder(shape, hf_rows=hf_rows, lora=lora),
        vision_encoder(shape, mode=encoder_mode, pad_tiles=tiles, lora=lora),
        family=deep_fusion_family(name, shape),
        adapters_only=lora is not None,
        padding_is_read=hf_rows,
    )
    finish(model, lora, adapters_to_peft, adapters_from_peft, shape=shape)
    return model
