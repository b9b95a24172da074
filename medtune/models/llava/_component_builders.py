"""Build modules from sizes: CLIP's layers, the projection, and torchtune's decoders."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch import nn
from torchtune.models.clip import clip_vision_encoder
from torchtune.models.clip._text_encoder import QuickGELU
from torchtune.models.llama2 import llama2, lora_llama2
from torchtune.models.qwen2 import lora_qwen2, qwen2
from torchtune.modules import RotaryPositionalEmbeddings, TransformerDecoder
from torchtune.modules.common_utils import reparametrize_as_dtype_state_dict_post_hook

from medtune.models.common.early_fusion import EarlyFusionVLM, ImageEncoder
from medtune.models.common.tied import tied
from medtune.models.llava._config import llava_family
from medtune.models.llava._peft import adapters_from_peft, adapters_to_peft
from medtune.models.llava._shape import Layout, LlavaShape
from medtune.models.llava._tower import ClipTower
from medtune.models.lora.finish import finish
from medtune.models.lora.options import ATTENTION, AdapterOptions, adapt, linear

LORA_PARTS = ("vision", "projection", "decoder")


@dataclass(frozen=True)
class LoraOptions(AdapterOptions):
    """Options of LLaVA's adapters; ``projection`` means both of its linear layers, which are never NF4."""

    known_parts: ClassVar[tuple[str, ...]] = LORA_PARTS
    without_effect: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "vision": ("output",),
        "projection": ("attn_modules", "mlp", "output"),
    }


def image_encoder(shape: LlavaShape, lora: LoraOptions | None = None) -> ImageEncoder:
    """Build CLIP's vision transformer and the projection.

    Args:
        shape: sizes.
        lora: adapters, or None for a plain model.
    """
    return ImageEncoder(vision_tower(shape, lora), _projection(shape, lora))


def vision_tower(shape: LlavaShape, lora: AdapterOptions | None = None) -> ClipTower:
    """Build CLIP's vision transformer.

    Args:
        shape: sizes.
        lora: adapters, or None for a plain tower.
    """
    clip = clip_vision_encoder(
        tile_size=shape.image_size,
        patch_size=shape.patch_size,
        embed_dim=shape.vision_dim,
        num_layers=shape.vision_layers,
        num_heads=shape.vision_heads,
        activation=QuickGELU,
        attn_bias=True,
        max_num_tiles=1,
    )
    last = clip.layers.pop(-1)
    adapted = lora.for_part("vision") if lora is not None else None
    if adapted is None:
        return ClipTower(clip, last)
    # lora_clip_vision_encoder is not used, because it drops the biases of the attention layers that it adapts
    for layer in clip.layers:
        for name in ATTENTION:
            adapt(layer.attn, name, adapted, adapted=name in adapted.attn_modules)
        for name in ("w1", "w2"):
            adapt(layer.mlp, name, adapted, adapted=adapted.mlp)
    tower = ClipTower(clip, last)
    if adapted.quantize_base:
        # as torchtune's builders do for their models, so that state dicts hold dense weights
        hook = partial(reparametrize_as_dtype_state_dict_post_hook, dtype=tower.conv.weight.dtype, offload_to_cpu=True)
        tower._register_state_dict_hook(hook)
    return tower


def _projection(shape: LlavaShape, lora: LoraOptions | None) -> nn.Sequential:
    """Linear, GELU, linear (LLaVA-1.5, Liu et al. 2023); with adapters it stays dense, because it is small."""
    options = lora.for_part("projection") if lora is not None else None
    first, second = (
        linear(wide, shape.dim, options, adapted=True, bias=True, quantize=False)
        for wide in (shape.vision_dim, shape.dim)
    )
    return nn.Sequential(first, nn.GELU(), second)


def language_decoder(shape: LlavaShape, lora: AdapterOptions | None = None) -> TransformerDecoder:
    """Build the language model.

    Args:
        shape: sizes.
        lora: adapters, or None for a plain model.
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
    }
    adapted = lora.for_part("decoder") if lora is not None else None
    base = {"rope_base": shape.rope_base}
    if adapted is None:
        plain = qwen2(**sizes, **base) if shape.decoder == "qwen2" else llama2(**sizes, **base)
        return tied(plain, shape.tied)
    if shape.decoder == "qwen2":
        decoder = lora_qwen2(**adapted.torchtune(), **sizes, **base)
        positions = decoder.layers[0].attn.pos_embeddings
    else:  # the builder knows the base 10,000 only
        decoder = lora_llama2(**adapted.torchtune(), **sizes)
        head_dim = shape.dim // shape.heads
        positions = RotaryPositionalEmbeddings(head_dim, max_seq_len=shape.max_seq_len, base=int(shape.rope_base))
    for layer in decoder.layers:  # torchtune gives every adapted layer its own table
        layer.attn.pos_embeddings = positions
    return tied(decoder, shape.tied, adapted)


def llava_vlm(
    name: str, shape: LlavaShape, *, layout: Layout = "hf", lora: LoraOptions | None = None
) -> EarlyFusionVLM:
    """Build a complete model of the LLaVA architecture.

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
        image_encoder(shape, lora),
        image_id=shape.image_id,
        family=llava_family(name, shape, layout),
        adapters_only=lora is not None,
    )
    finish(model, lora, adapters_to_peft, adapters_from_peft, shape=shape, layout=layout)
    return model
