"""Build modules from sizes: the vision tower and its merger here, the decoder with torchtune's Qwen2 builders."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torchtune.models.qwen2 import lora_qwen2, qwen2
from torchtune.modules import (
    FeedForward,
    RMSNorm,
    TransformerDecoder,
    TransformerSelfAttentionLayer,
)
from torchtune.modules.common_utils import reparametrize_as_dtype_state_dict_post_hook

from medtune.errors import ModelError
from medtune.models.lora.finish import finish
from medtune.models.lora.options import ATTENTION, AdapterOptions, linear
from medtune.models.qwen2_5_vl._convert_weights import qwen2_5_vl_family
from medtune.models.qwen2_5_vl._peft import adapters_from_peft, adapters_to_peft
from medtune.models.qwen2_5_vl._positions import MRope
from medtune.models.qwen2_5_vl._shape import Qwen2_5VLShape
from medtune.models.qwen2_5_vl._vision import NORM_EPS, AxialRope, BlockEncoder, GroupedAttention, Merger, Qwen2_5Vision
from medtune.models.qwen2_5_vl._vlm import Qwen2_5VL

LORA_PARTS = ("vision", "decoder")


@dataclass(frozen=True)
class LoraOptions(AdapterOptions):
    """Options of Qwen2.5-VL's adapters. The merger carries no adapters: it is fully trained or frozen."""

    known_parts: ClassVar[tuple[str, ...]] = LORA_PARTS
    without_effect: ClassVar[Mapping[str, tuple[str, ...]]] = {"vision": ("output",)}


def vision_encoder(shape: Qwen2_5VLShape, lora: LoraOptions | None = None) -> BlockEncoder:
    """Build the vision tower and the merger.

    Args:
        shape: sizes.
        lora: adapters, or None for a plain model. NF4 takes the attention layers only: the MLPs are 3420 wide, and
            1280 x 3420 values do not divide into the blocks of its scales.
    """
    adapted = lora.for_part("vision") if lora is not None else None
    vision = Qwen2_5Vision(
        [_vision_layer(shape, adapted) for _ in range(shape.vision_layers)],
        full_layers=shape.full_layers,
        dim=shape.vision_dim,
        heads=shape.vision_heads,
        patch_size=shape.patch_size,
        window=shape.window_blocks,
    )
    if adapted is not None and adapted.quantize_base:
        # as torchtune's builders do for their models, so that state dicts hold dense weights
        hook = partial(reparametrize_as_dtype_state_dict_post_hook, dtype=vision.conv.weight.dtype, offload_to_cpu=True)
        vision._register_state_dict_hook(hook)
    return BlockEncoder(vision, Merger(shape.vision_dim, shape.dim))


def _vision_layer(shape: Qwen2_5VLShape, lora: LoraOptions | None) -> TransformerSelfAttentionLayer:
    dim, wide = shape.vision_dim, shape.vision_mlp_dim
    chosen = () if lora is None else lora.attn_modules
    maps = {name: linear(dim, dim, lora, adapted=name in chosen, bias=True) for name in ATTENTION}
    dense: Any = partial(linear, lora=lora, adapted=lora is not None and lora.mlp, bias=True, quantize=False)
    attention = GroupedAttention(
        embed_dim=dim,
        num_heads=shape.vision_heads,
        num_kv_heads=shape.vision_heads,
        head_dim=dim // shape.vision_heads,
        pos_embeddings=AxialRope(),
        is_causal=False,
        **maps,
    )
    mlp = FeedForward(gate_proj=dense(dim, wide), down_proj=dense(wide, dim), up_proj=dense(dim, wide))
    norms = {name: RMSNorm(dim, eps=NORM_EPS) for name in ("sa_norm", "mlp_norm")}
    return TransformerSelfAttentionLayer(attention, mlp, **norms)


def language_decoder(shape: Qwen2_5VLShape, lora: LoraOptions | None = None) -> TransformerDecoder:
    """Build the language model: Qwen2's layers, whose rotary positions have three axes.

    Args:
        shape: sizes.
        lora: adapters, or None for a plain model.

    Raises:
        ModelError: if an adapter of the output layer is wanted, and that layer is the embedding table.
    """
    sizes: dict[str, Any] = {
        "vocab_size": shape.vocab_size,
        "num_layers": shape.layers,
        "num_heads": shape.heads,
        "num_kv_heads": shape.kv_heads,
        "embed_dim": shape.dim,
        "intermediate_dim": shape.mlp_dim,
        "max_seq_len": 1,  # of torchtune's own table of positions, which is replaced
        "norm_eps": shape.norm_eps,
        "rope_base": shape.rope_base,
        "tie_word_embeddings": shape.tied,
    }
    adapted = lora.for_part("decoder") if lora is not None else None
    if adapted is not None and adapted.output and shape.tied:
        raise ModelError(
            "the output layer of this model is its embedding table (tie_word_embeddings), which carries no adapter; "
            "leave out apply_lora_to_output"
        )
    decoder = qwen2(**sizes) if adapted is None else lora_qwen2(**adapted.torchtune(), **sizes)
    decoder.max_seq_len = shape.max_seq_len
    rope = MRope(shape.head_dim, shape.max_seq_len, shape.rope_base, shape.rope_sections)
    for layer in decoder.layers:
        layer.attn.pos_embeddings = rope
        layer.attn.max_seq_len = shape.max_seq_len
    return decoder


def qwen2_5_vl(name: str, shape: Qwen2_5VLShape, *, lora: LoraOptions | None = None) -> Qwen2_5VL:
    """Build a complete model of the Qwen2.5-VL family.

    Args:
        name: family and size, for messages.
        shape: sizes.
        lora: adapters; with adapters nothing else is trainable until a recipe says so.
    """
    model = Qwen2_5VL(
        language_decoder(shape, lora),
        vision_encoder(shape, lora),
        image_id=shape.image_id,
        family=qwen2_5_vl_family(name, shape),
        adapters_only=lora is not None,
    )
    finish(model, lora, adapters_to_peft, adapters_from_peft, shape=shape)
    return model
