"""Build modules from sizes: InternViT and its connector here, decoders with torchtune's builders."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch import nn
from torchtune.models.llama3 import llama3, lora_llama3
from torchtune.models.qwen2 import lora_qwen2, qwen2
from torchtune.modules import (
    FeedForward,
    Fp32LayerNorm,
    MultiHeadAttention,
    TransformerDecoder,
    TransformerSelfAttentionLayer,
)
from torchtune.modules.common_utils import reparametrize_as_dtype_state_dict_post_hook

from medtune.models.common.early_fusion import EarlyFusionVLM, ImageEncoder
from medtune.models.common.tied import tied
from medtune.models.internvl._convert_weights import internvl_family
from medtune.models.internvl._peft import adapters_from_peft, adapters_to_peft
from medtune.models.internvl._shape import InternVLShape, Layout
from medtune.models.internvl._vision import Connector, InternViT, LayerScale
from medtune.models.lora.finish import finish
from medtune.models.lora.options import ATTENTION, AdapterOptions, linear

LORA_PARTS = ("vision", "decoder")
_VISION_EPS = 1e-6


@dataclass(frozen=True)
class LoraOptions(AdapterOptions):
    """Options of InternVL's adapters. The connector carries no adapters: it is fully trained or frozen."""

    known_parts: ClassVar[tuple[str, ...]] = LORA_PARTS
    without_effect: ClassVar[Mapping[str, tuple[str, ...]]] = {"vision": ("output",)}


def vision_encoder(shape: InternVLShape, lora: LoraOptions | None = None) -> ImageEncoder:
    """Build InternViT and the connector.

    Args:
        shape: sizes.
        lora: adapters, or None for a plain model.
    """
    adapted = lora.for_part("vision") if lora is not None else None
    layers = [_vision_layer(shape, adapted) for _ in range(shape.vision_layers)]
    vision = InternViT(layers, dim=shape.vision_dim, image_size=shape.image_size, patch_size=shape.patch_size)
    if adapted is not None and adapted.quantize_base:
        # as torchtune's builders do for their models, so that state dicts hold dense weights
        hook = partial(reparametrize_as_dtype_state_dict_post_hook, dtype=vision.conv.weight.dtype, offload_to_cpu=True)
        vision._register_state_dict_hook(hook)
    return ImageEncoder(vision, Connector(shape.vision_dim, shape.dim))


def _vision_layer(shape: InternVLShape, lora: LoraOptions | None) -> TransformerSelfAttentionLayer:
    dim, wide = shape.vision_dim, shape.vision_mlp_dim
    chosen = () if lora is None else lora.attn_modules
    maps = {name: linear(dim, dim, lora, adapted=name in chosen, bias=True) for name in ATTENTION}
    in_mlp = lora is not None and lora.mlp
    attention = MultiHeadAttention(
        embed_dim=dim,
        num_heads=shape.vision_heads,
        num_kv_heads=shape.vision_heads,
        head_dim=dim // shape.vision_heads,
        pos_embeddings=None,
        is_causal=False,
        **maps,
    )
    mlp = FeedForward(
        gate_proj=linear(dim, wide, lora, adapted=in_mlp, bias=True),
        down_proj=linear(wide, dim, lora, adapted=in_mlp, bias=True),
        activation=nn.GELU(),
    )
    return TransformerSelfAttentionLayer(
        attention,
        mlp,
        sa_norm=Fp32LayerNorm(dim, eps=_VISION_EPS),
        mlp_norm=Fp32LayerNorm(dim, eps=_VISION_EPS),
        sa_scale=LayerScale(dim, shape.layer_scale),
        mlp_scale=LayerScale(dim, shape.layer_scale),
    )


def language_decoder(shape: InternVLShape, lora: LoraOptions | None = None) -> TransformerDecoder:
    """Build the language model: Llama's layers for InternLM2, Qwen2's for Qwen2.5.

    Args:
        shape: sizes.
        lora: adapters, or None for a plain model.

    Raises:
        ModelError: if an adapter is asked for on an output layer that is the embedding table.
    """
    sizes: dict[str, Any] = {
        "vocab_size": shape.vocab_size,
        "num_layers": shape.layers,
        "num_heads": shape.heads,
        "num_kv_heads": shape.kv_heads,
        "embed_dim": shape.dim,
        "intermediate_dim": shape.mlp_dim,
        "max_seq_len": shape.max_seq_len,
        "norm_eps": shape.norm_eps,
        "rope_base": shape.rope_base,
    }
    plain, with_lora = (llama3, lora_llama3) if shape.decoder == "internlm2" else (qwen2, lora_qwen2)
    adapted = lora.for_part("decoder") if lora is not None else None
    if adapted is None:
        return tied(plain(**sizes), shape.tied)
    decoder = tied(with_lora(**adapted.torchtune(), **sizes), shape.tied, adapted)
    # torchtune gives every adapted layer its own table of positions: a gigabyte for 28 layers of 32,768 positions
    shared = decoder.layers[0].attn.pos_embeddings
    for layer in decoder.layers:
        layer.attn.pos_embeddings = shared
    return decoder


def internvl_vlm(name: str, shape: InternVLShape, *, layout: Layout, lora: LoraOptions | None = None) -> EarlyFusionVLM:
    """Build a complete model of the InternVL family.

    Args:
        name: family and size, for messages.
        shape: sizes.
        layout: published layout in which exports are written; both layouts can be read.
        lora: adapters; with adapters nothing else is trainable until a recipe says so.

    Raises:
        ModelError: if ``layout`` is unknown.
    """
    model = EarlyFusionVLM(
        language_decoder(shape, lora),
        vision_encoder(shape, lora),
        image_id=shape.image_id,
        family=internvl_family(name, shape, layout),
        adapters_only=lora is not None,
    )
    finish(model, lora, adapters_to_peft, adapters_from_peft, shape=shape, layout=layout)
    return model
