"""From sizes to modules: CLIP's layers, the projection, and torchtune's Llama-2 decoder."""

from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

from torch import nn
from torchtune.models.clip import clip_vision_encoder
from torchtune.models.clip._text_encoder import QuickGELU
from torchtune.models.llama2 import llama2, lora_llama2
from torchtune.modules import FrozenNF4Linear, TransformerDecoder
from torchtune.modules.common_utils import reparametrize_as_dtype_state_dict_post_hook
from torchtune.modules.peft import LoRALinear

from medtune.models.early_fusion import EarlyFusionVLM, ImageEncoder
from medtune.models.llava._convert_weights import llava_family
from medtune.models.llava._peft import adapters_from_peft, adapters_to_peft
from medtune.models.llava._shape import LlavaShape
from medtune.models.llava._tower import ClipTower
from medtune.models.lora import ATTENTION, AdapterOptions
from medtune.models.names import expected_shapes, is_adapter_key

LORA_PARTS = ("vision", "projection", "decoder")


@dataclass(frozen=True)
class LoraOptions(AdapterOptions):
    """Adapters of LLaVA; ``projection`` means both of its linear maps, which are never NF4."""

    known_parts: ClassVar[tuple[str, ...]] = LORA_PARTS


def image_encoder(shape: LlavaShape, lora: LoraOptions | None = None) -> ImageEncoder:
    """Build CLIP's vision transformer and the projection.

    Args:
        shape: sizes.
        lora: adapters, or None for a plain model.
    """
    return ImageEncoder(_tower(shape, lora), _projection(shape, lora))


def _tower(shape: LlavaShape, lora: LoraOptions | None) -> ClipTower:
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
    if lora is None or "vision" not in lora.parts:
        return ClipTower(clip, last)
    # not by lora_clip_vision_encoder: it drops the biases of the attention maps that it adapts
    for layer in clip.layers:
        for name in ATTENTION:
            _adapt(layer.attn, name, lora, adapted=name in lora.attn_modules)
        for name in ("w1", "w2"):
            _adapt(layer.mlp, name, lora, adapted=lora.mlp)
    tower = ClipTower(clip, last)
    if lora.quantize_base:
        # as torchtune's builders do for their own models: state dicts hold dense weights
        hook = partial(reparametrize_as_dtype_state_dict_post_hook, dtype=tower.conv.weight.dtype, offload_to_cpu=True)
        tower._register_state_dict_hook(hook)
    return tower


def _adapt(owner: nn.Module, name: str, lora: LoraOptions, *, adapted: bool) -> None:
    """Put an adapted or quantised linear map in the place of a plain one."""
    plain: nn.Linear = getattr(owner, name)
    if adapted:
        setattr(owner, name, _adapted(plain.in_features, plain.out_features, lora, quantize=lora.quantize_base))
    elif lora.quantize_base:
        setattr(owner, name, FrozenNF4Linear(plain.in_features, plain.out_features, bias=True))


def _adapted(wide: int, out: int, lora: LoraOptions, *, quantize: bool = False) -> LoRALinear:
    return LoRALinear(
        wide, out, rank=lora.rank, alpha=lora.alpha, dropout=lora.dropout, use_bias=True, quantize_base=quantize
    )


def _projection(shape: LlavaShape, lora: LoraOptions | None) -> nn.Sequential:
    """Linear, GELU, linear (LLaVA-1.5, Liu et al. 2023); the adapted one stays dense, as it is small."""
    linear = nn.Linear if lora is None or "projection" not in lora.parts else partial(_adapted, lora=lora)
    return nn.Sequential(linear(shape.vision_dim, shape.dim), nn.GELU(), linear(shape.dim, shape.dim))


def language_decoder(shape: LlavaShape, lora: LoraOptions | None = None) -> TransformerDecoder:
    """Build the language model.

    Args:
        shape: sizes.
        lora: adapters, or None for a plain model.
    """
    sizes = {
        "vocab_size": shape.vocab_size,
        "num_layers": shape.layers,
        "num_heads": shape.heads,
        "num_kv_heads": shape.kv_heads,
        "embed_dim": shape.dim,
        "intermediate_dim": shape.mlp_dim,
        "max_seq_len": shape.max_seq_len,
        "norm_eps": 1e-5,
    }
    if lora is None or "decoder" not in lora.parts:
        return llama2(**sizes)
    return lora_llama2(
        list(lora.attn_modules),
        apply_lora_to_mlp=lora.mlp,
        apply_lora_to_output=lora.output,
        lora_rank=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        quantize_base=lora.quantize_base,
        **sizes,
    )


def llava_vlm(name: str, shape: LlavaShape, *, lora: LoraOptions | None = None) -> EarlyFusionVLM:
    """Build a whole model of the LLaVA shape.

    Args:
        name: of the family and size, for messages.
        shape: sizes.
        lora: adapters; with them nothing else is trainable until a recipe says so.
    """
    model = EarlyFusionVLM(
        language_decoder(shape, lora),
        image_encoder(shape, lora),
        image_id=shape.image_id,
        family=llava_family(name, shape),
        adapters_only=lora is not None,
    )
    plain = frozenset(key for key in expected_shapes(model) if not is_adapter_key(key))
    model.family = replace(
        model.family,
        tensors=plain,
        adapters_to_peft=partial(adapters_to_peft, shape=shape),
        adapters_from_peft=partial(adapters_from_peft, shape=shape),
    )
    return model
