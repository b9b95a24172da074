"""Small models of SQ-LLaVA's shape: plain, with LoRA and with QLoRA; the transform is that of a mini LLaVA."""

from dataclasses import asdict
from functools import partial
from typing import Any

from medtune.models.common.early_fusion import EarlyFusionVLM
from medtune.models.lora.options import LoraParts
from medtune.models.mini._llava import initialise, mini_shape
from medtune.models.sq_llava._component_builders import LoraOptions, sq_llava_vlm
from medtune.models.sq_llava._shape import SqLlavaShape


def _shape(prototypes: int, **sizes: Any) -> SqLlavaShape:
    return SqLlavaShape(**{**asdict(mini_shape(**sizes)), "vocab_size": sizes["vocab_size"]}, prototypes=prototypes)


def _initialise(model: EarlyFusionVLM) -> EarlyFusionVLM:
    extractor: Any = model.encoder.projection
    return initialise(model, extractor.mlp)


def mini_sq_llava(
    vocab_size: int = 1024,
    image_size: int = 64,
    patch_size: int = 8,
    embed_dim: int = 128,
    vision_layers: int = 4,
    decoder_layers: int = 4,
    heads: int = 4,
    max_seq_len: int = 1024,
    prototypes: int = 16,
) -> EarlyFusionVLM:
    """A small model of SQ-LLaVA's architecture, initialised from torch's global random state.

    Args:
        vocab_size: the tokenizer's ``vocab_size``.
        image_size: side of the image in pixels.
        patch_size: side of a patch in pixels; each patch is one token.
        embed_dim: width of vision transformer and decoder.
        vision_layers: depth of the vision transformer; as in CLIP and LLaVA, the last layer exists but is not used.
        decoder_layers: depth of the decoder.
        heads: attention heads everywhere.
        max_seq_len: longest text, image tokens included.
        prototypes: number of prototypes, for 64 patches.
    """
    return _initialise(sq_llava_vlm("mini_sq_llava", _shape(**locals())))


def lora_mini_sq_llava(
    lora_attn_modules: list[str],
    apply_lora_to_mlp: bool = False,
    apply_lora_to_output: bool = False,
    lora_rank: int = 8,
    lora_alpha: float = 16.0,
    lora_dropout: float = 0.0,
    quantize_base: bool = False,
    lora_parts: LoraParts = ("decoder",),
    vocab_size: int = 1024,
    image_size: int = 64,
    patch_size: int = 8,
    embed_dim: int = 128,
    vision_layers: int = 4,
    decoder_layers: int = 4,
    heads: int = 4,
    max_seq_len: int = 1024,
    prototypes: int = 16,
) -> EarlyFusionVLM:
    """A mini model with low-rank adapters, the only trainable parameters.

    Arguments as for :func:`mini_sq_llava` and, for the adapters, :func:`medtune.models.sq_llava.lora_sq_llava_7b`. With
    ``quantize_base`` each adapted linear layer needs at least 16,384 weights, so ``embed_dim`` must be 128 or more.
    """
    lora = LoraOptions.from_arguments(locals())
    shape = _shape(
        prototypes=prototypes,
        vocab_size=vocab_size,
        image_size=image_size,
        patch_size=patch_size,
        embed_dim=embed_dim,
        vision_layers=vision_layers,
        decoder_layers=decoder_layers,
        heads=heads,
        max_seq_len=max_seq_len,
    )
    return _initialise(sq_llava_vlm("mini_sq_llava", shape, lora=lora))


qlora_mini_sq_llava = partial(lora_mini_sq_llava, quantize_base=True)
qlora_mini_sq_llava.__doc__ = "A mini model with adapters on an NF4 base: see ``lora_mini_sq_llava``."
