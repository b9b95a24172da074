"""Gemma 3 of 4B and 27B parameters and MedGemma 4B: plain, with LoRA and with QLoRA."""

from dataclasses import replace
from functools import partial
from typing import Any

from medtune.models.gemma3._component_builders import Gemma3VLM, LoraOptions, gemma3_vlm
from medtune.models.gemma3._shape import Gemma3Shape
from medtune.models.lora.options import ATTENTION, LoraParts

MAX_SEQ_LEN = 8192
# All sizes use SigLIP-So400m at 896 pixels.
_VISION: dict[str, Any] = {
    "image_size": 896,
    "patch_size": 14,
    "vision_dim": 1152,
    "vision_layers": 27,
    "vision_heads": 16,
    "vision_mlp_dim": 4304,
    "tokens_per_image": 256,
}
GEMMA3_4B = Gemma3Shape(
    **_VISION,
    dim=2560,
    layers=34,
    heads=8,
    kv_heads=4,
    head_dim=256,
    mlp_dim=10_240,
    vocab_size=262_208,
    query_scale=256,
    window=1024,
)
GEMMA3_27B = Gemma3Shape(
    **_VISION,
    dim=5376,
    layers=62,
    heads=32,
    kv_heads=16,
    head_dim=128,
    mlp_dim=21_504,
    vocab_size=262_208,
    query_scale=168,
    window=1024,
)


def gemma3_4b(max_seq_len: int = MAX_SEQ_LEN) -> Gemma3VLM:
    """Gemma 3 4B (SigLIP-So400m at 896 pixels), every parameter trainable until a recipe freezes parts.

    Args:
        max_seq_len: longest text, 256 tokens for each image included. The model was made for up to 131,072; 4 KiB of
            tables are kept per position.
    """
    return gemma3_vlm("gemma3_4b", replace(GEMMA3_4B, max_seq_len=max_seq_len))


def gemma3_27b(max_seq_len: int = MAX_SEQ_LEN) -> Gemma3VLM:
    """Gemma 3 27B, every parameter trainable until a recipe freezes parts; the argument as for :func:`gemma3_4b`."""
    return gemma3_vlm("gemma3_27b", replace(GEMMA3_27B, max_seq_len=max_seq_len))


def medgemma_4b(max_seq_len: int = MAX_SEQ_LEN) -> Gemma3VLM:
    """MedGemma 4B: Gemma 3 4B with weights that Google trained further on medical images and texts.

    Args:
        max_seq_len: as for :func:`gemma3_4b`.
    """
    return gemma3_vlm("medgemma_4b", replace(GEMMA3_4B, max_seq_len=max_seq_len))


def lora_gemma3_4b(
    lora_attn_modules: tuple[str, ...] | list[str] = ATTENTION,
    apply_lora_to_mlp: bool = True,
    apply_lora_to_output: bool = False,
    lora_rank: int = 16,
    lora_alpha: float = 32.0,
    lora_dropout: float = 0.05,
    quantize_base: bool = False,
    double_quant: bool = True,
    lora_parts: LoraParts = ("decoder",),
    max_seq_len: int = MAX_SEQ_LEN,
) -> Gemma3VLM:
    """Gemma 3 4B with low-rank adapters, the only trainable parameters until a recipe names more.

    Args:
        lora_attn_modules: some of ``q_proj``, ``k_proj``, ``v_proj``, ``output_proj``.
        apply_lora_to_mlp: adapters in the MLPs too.
        apply_lora_to_output: must stay False: the output layer is the embedding table.
        lora_rank: rank of each adapter.
        lora_alpha: scale of each adapter, divided by its rank.
        lora_dropout: dropout before each adapter.
        quantize_base: keep the linear layers of adapted parts as NF4 (QLoRA); SigLIP's MLPs stay dense, because NF4
            cannot hold layers of their size.
        double_quant: with ``quantize_base``, quantise the scales of NF4's blocks too: 4.13 bits per weight; without it
            4.63, and no rounding of the scales.
        lora_parts: which of ``vision`` and ``decoder`` carry adapters, or a mapping from a part to the options that
            differ there (``rank``, ``alpha``, ``dropout``, ``attn_modules``, ``mlp``), as in
            ``{vision: {rank: 32, alpha: 64}, decoder: {rank: 128, alpha: 256}}``. To train the projection, which is
            trained in full, name ``projection`` in ``trainable``.
        max_seq_len: as for :func:`gemma3_4b`.

    Raises:
        ModelError: if ``apply_lora_to_output`` is set.
    """
    lora = LoraOptions.from_arguments(locals())
    return gemma3_vlm("gemma3_4b", replace(GEMMA3_4B, max_seq_len=max_seq_len), lora=lora)


def lora_gemma3_27b(
    lora_attn_modules: tuple[str, ...] | list[str] = ATTENTION,
    apply_lora_to_mlp: bool = True,
    apply_lora_to_output: bool = False,
    lora_rank: int = 16,
    lora_alpha: float = 32.0,
    lora_dropout: float = 0.05,
    quantize_base: bool = False,
    double_quant: bool = True,
    lora_parts: LoraParts = ("decoder",),
    max_seq_len: int = MAX_SEQ_LEN,
) -> Gemma3VLM:
    """Gemma 3 27B with low-rank adapters; arguments as for :func:`lora_gemma3_4b`."""
    lora = LoraOptions.from_arguments(locals())
    return gemma3_vlm("gemma3_27b", replace(GEMMA3_27B, max_seq_len=max_seq_len), lora=lora)


def lora_medgemma_4b(
    lora_attn_modules: tuple[str, ...] | list[str] = ATTENTION,
    apply_lora_to_mlp: bool = True,
    apply_lora_to_output: bool = False,
    lora_rank: int = 16,
    lora_alpha: float = 32.0,
    lora_dropout: float = 0.05,
    quantize_base: bool = False,
    double_quant: bool = True,
    lora_parts: LoraParts = ("decoder",),
    max_seq_len: int = MAX_SEQ_LEN,
) -> Gemma3VLM:
    """MedGemma 4B with low-rank adapters; arguments as for :func:`lora_gemma3_4b`."""
    lora = LoraOptions.from_arguments(locals())
    return gemma3_vlm("medgemma_4b", replace(GEMMA3_4B, max_seq_len=max_seq_len), lora=lora)


qlora_gemma3_4b = partial(lora_gemma3_4b, quantize_base=True)
qlora_gemma3_4b.__doc__ = "Gemma 3 4B, adapters on an NF4 base: see ``lora_gemma3_4b``."

qlora_gemma3_27b = partial(lora_gemma3_27b, quantize_base=True)
qlora_gemma3_27b.__doc__ = "Gemma 3 27B, adapters on an NF4 base: see ``lora_gemma3_4b``."

qlora_medgemma_4b = partial(lora_medgemma_4b, quantize_base=True)
qlora_medgemma_4b.__doc__ = "MedGemma 4B, adapters on an NF4 base: see ``lora_gemma3_4b``."
