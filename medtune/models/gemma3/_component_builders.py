"""Build modules from sizes: SigLIP, the projection, and Gemma 3's decoder of global and local layers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn
from torchtune.models.gemma.gemma_norm_embedding import GemmaNormEmbeddings
from torchtune.models.gemma.rms_norm import GemmaRMSNorm
from torchtune.modules import (
    FeedForward,
    Fp32LayerNorm,
    MultiHeadAttention,
    TiedLinear,
    TransformerDecoder,
    TransformerSelfAttentionLayer,
)
from torchtune.modules.common_utils import reparametrize_as_dtype_state_dict_post_hook

from medtune.errors import ModelError
from medtune.models.common.branch_attention import Mask
from medtune.models.common.early_fusion import EarlyFusionVLM, ImageEncoder
from medtune.models.gemma3._attention import NormFirstAttention, ScaledRotary
from medtune.models.gemma3._convert_weights import gemma3_family
from medtune.models.gemma3._masks import layer_masks
from medtune.models.gemma3._peft import adapters_from_peft, adapters_to_peft
from medtune.models.gemma3._shape import Gemma3Shape
from medtune.models.gemma3._vision import Projection, SiglipTower
from medtune.models.lora.finish import finish
from medtune.models.lora.options import ATTENTION, AdapterOptions, linear

LORA_PARTS = ("vision", "decoder")
_NF4_BLOCK = 64 * 256  # torchao quantises weights whose number is a multiple of this


@dataclass(frozen=True)
class LoraOptions(AdapterOptions):
    """Options of Gemma 3's adapters. The projection carries no adapters: it is fully trained or frozen.

    Raises:
        ModelError: also if the output layer shall carry an adapter.
    """

    known_parts: ClassVar[tuple[str, ...]] = LORA_PARTS
    without_effect: ClassVar[Mapping[str, tuple[str, ...]]] = {"vision": ("output",)}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.output:
            raise ModelError(
                "apply_lora_to_output: Gemma 3's output layer is its embedding table (tied weights), and an adapter on "
                "it would change one and not the other; leave it out"
            )


class Gemma3VLM(EarlyFusionVLM):
    """Gemma 3: early fusion with two kinds of layers, and images whose tokens see one another.

    Args:
        shape: sizes of the model.
        decoder: as for :class:`EarlyFusionVLM`, as are the other arguments.
        encoder: as there.
        arguments: as there.

    Attributes:
        whole_images: True: the tokens of an image must be read in one pass.
    """

    whole_images = True

    def __init__(
        self, shape: Gemma3Shape, decoder: TransformerDecoder, encoder: ImageEncoder, **arguments: Any
    ) -> None:
        super().__init__(decoder, encoder, image_id=shape.image_id, **arguments)
        self._window = shape.window
        self._local = tuple(shape.is_local(layer) for layer in range(shape.layers))

    def layer_masks(self, mask: Mask, image: Tensor | None, tokens: Tensor) -> Sequence[Mask]:
        """One mask for each layer; see :func:`medtune.models.gemma3._masks.layer_masks`."""
        whole, near = layer_masks(mask, image, tokens, self._window)
        return tuple(near if local else whole for local in self._local)


def vision_encoder(shape: Gemma3Shape, lora: LoraOptions | None = None) -> ImageEncoder:
    """Build SigLIP and the projection.

    Args:
        shape: sizes.
        lora: adapters, or None for a plain model.
    """
    adapted = lora.for_part("vision") if lora is not None else None
    tower = SiglipTower(
        [_vision_layer(shape, adapted) for _ in range(shape.vision_layers)],
        dim=shape.vision_dim,
        patches=shape.grid**2,
        patch_size=shape.patch_size,
        eps=shape.vision_eps,
    )
    if adapted is not None and adapted.quantize_base:
        _dense_state_dicts(tower, tower.conv.weight)
    return ImageEncoder(tower, Projection(shape.vision_dim, shape.dim, side=shape.side, eps=shape.vision_eps))


def _vision_layer(shape: Gemma3Shape, lora: LoraOptions | None) -> TransformerSelfAttentionLayer:
    dim, wide = shape.vision_dim, shape.vision_mlp_dim
    attention = MultiHeadAttention(
        embed_dim=dim,
        num_heads=shape.vision_heads,
        num_kv_heads=shape.vision_heads,
        head_dim=dim // shape.vision_heads,
        pos_embeddings=None,
        is_causal=False,
        **{name: _linear(dim, dim, lora, adapted=_adapts(lora, name), bias=True) for name in ATTENTION},
    )
    in_mlp = lora is not None and lora.mlp
    mlp = FeedForward(
        gate_proj=_linear(dim, wide, lora, adapted=in_mlp, bias=True),
        down_proj=_linear(wide, dim, lora, adapted=in_mlp, bias=True),
        activation=nn.GELU(approximate="tanh"),
    )
    return TransformerSelfAttentionLayer(
        attention,
        mlp,
        sa_norm=Fp32LayerNorm(dim, eps=shape.vision_eps),
        mlp_norm=Fp32LayerNorm(dim, eps=shape.vision_eps),
    )


def language_decoder(shape: Gemma3Shape, lora: LoraOptions | None = None) -> TransformerDecoder:
    """Build the language model; its output layer is the embedding table.

    Args:
        shape: sizes.
        lora: adapters, or None for a plain model.
    """
    adapted = lora.for_part("decoder") if lora is not None else None
    near = ScaledRotary(shape.head_dim, shape.max_seq_len, shape.local_rope_base)
    far = ScaledRotary(shape.head_dim, shape.max_seq_len, shape.rope_base, shape.rope_factor)
    embeddings = GemmaNormEmbeddings(shape.vocab_size, shape.dim)
    decoder = TransformerDecoder(
        tok_embeddings=embeddings,
        layers=nn.ModuleList(
            _decoder_layer(shape, adapted, near if shape.is_local(layer) else far) for layer in range(shape.layers)
        ),
        max_seq_len=shape.max_seq_len,
        num_heads=shape.heads,
        head_dim=shape.head_dim,
        norm=GemmaRMSNorm(shape.dim, eps=shape.norm_eps),
        output=TiedLinear(embeddings),
    )
    if adapted is not None and adapted.quantize_base:
        _dense_state_dicts(decoder, embeddings.weight)
    return decoder


def _decoder_layer(
    shape: Gemma3Shape, lora: LoraOptions | None, positions: ScaledRotary
) -> TransformerSelfAttentionLayer:
    dim, wide = shape.dim, shape.mlp_dim
    rows = {"q_proj": shape.heads * shape.head_dim, "k_proj": shape.kv_heads * shape.head_dim}
    rows["v_proj"] = rows["k_proj"]
    maps = {name: _linear(dim, out, lora, adapted=_adapts(lora, name)) for name, out in rows.items()}
    maps["output_proj"] = _linear(rows["q_proj"], dim, lora, adapted=_adapts(lora, "output_proj"))
    attention = NormFirstAttention(
        scale=shape.query_scale**-0.5,
        embed_dim=dim,
        num_heads=shape.heads,
        num_kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        q_norm=GemmaRMSNorm(shape.head_dim, eps=shape.norm_eps),
        k_norm=GemmaRMSNorm(shape.head_dim, eps=shape.norm_eps),
        pos_embeddings=positions,
        max_seq_len=shape.max_seq_len,
        **maps,
    )
    in_mlp = lora is not None and lora.mlp
    mlp = FeedForward(
        gate_proj=_linear(dim, wide, lora, adapted=in_mlp),
        down_proj=_linear(wide, dim, lora, adapted=in_mlp),
        up_proj=_linear(dim, wide, lora, adapted=in_mlp),
        activation=nn.GELU(approximate="tanh"),
    )
    norms = {name: GemmaRMSNorm(dim, eps=shape.norm_eps) for name in ("sa_norm", "mlp_norm", "sa_scale", "mlp_scale")}
    return TransformerSelfAttentionLayer(attention, mlp, **norms)


def _adapts(lora: LoraOptions | None, name: str) -> bool:
    return lora is not None and name in lora.attn_modules


def _linear(wide: int, out: int, lora: LoraOptions | None, *, adapted: bool, bias: bool = False) -> nn.Module:
    """A linear layer; of those that NF4 cannot hold (SigLIP's MLPs of 1152 x 4304), the base stays dense."""
    quantize = lora is not None and lora.quantize_base and wide * out % _NF4_BLOCK == 0
    return linear(wide, out, lora, adapted=adapted, bias=bias, quantize=quantize)


def _dense_state_dicts(module: nn.Module, like: Tensor) -> None:
    """As torchtune's builders do for their models: state dicts hold dense weights."""
    hook = partial(reparametrize_as_dtype_state_dict_post_hook, dtype=like.dtype, offload_to_cpu=True)
    module._register_state_dict_hook(hook)


def gemma3_vlm(name: str, shape: Gemma3Shape, *, lora: LoraOptions | None = None) -> Gemma3VLM:
    """Build a complete model of the Gemma 3 family.

    Args:
        name: family and size, for messages.
        shape: sizes.
        lora: adapters; with adapters nothing else is trainable until a recipe says so.
    """
    model = Gemma3VLM(
        shape,
        language_decoder(shape, lora),
        vision_encoder(shape, lora),
        family=gemma3_family(name, shape),
        adapters_only=lora is not None,
    )
    finish(model, lora, adapters_to_peft, adapters_from_peft, shape=shape)
    return model
