"""Qwen2.5-VL-3B and -7B: plain, with LoRA and with QLoRA."""

from functools import partial
from typing import Any

from medtune.models.lora.options import ATTENTION, LoraParts
from medtune.models.qwen2_5_vl._component_builders import LoraOptions, qwen2_5_vl
from medtune.models.qwen2_5_vl._shape import Qwen2_5VLShape
from medtune.models.qwen2_5_vl._vlm import Qwen2_5VL

# Both sizes have the same vision tower and the same special tokens.
_SHARED: dict[str, Any] = {
    "vision_dim": 1280,
    "vision_layers": 32,
    "vision_heads": 16,
    "vision_mlp_dim": 3420,
    "full_layers": (7, 15, 23, 31),
    "image_id": 151_655,
    "video_id": 151_656,
    "vision_start_id": 151_652,
    "vision_end_id": 151_653,
    "bos_id": 151_643,
    "eos_id": 151_645,
}
QWEN2_5_VL_3B = Qwen2_5VLShape(
    **_SHARED, dim=2048, layers=36, heads=16, kv_heads=2, mlp_dim=11_008, vocab_size=151_936, tied=True
)
QWEN2_5_VL_7B = Qwen2_5VLShape(
    **_SHARED, dim=3584, layers=28, heads=28, kv_heads=4, mlp_dim=18_944, vocab_size=152_064, tied=False
)


def qwen2_5_vl_3b() -> Qwen2_5VL:
    """Qwen2.5-VL-3B, its output layer tied to its embeddings; all is trainable until a recipe freezes parts."""
    return qwen2_5_vl("qwen2_5_vl_3b", QWEN2_5_VL_3B)


def qwen2_5_vl_7b() -> Qwen2_5VL:
    """Qwen2.5-VL-7B. Every parameter is trainable until a recipe freezes parts."""
    return qwen2_5_vl("qwen2_5_vl_7b", QWEN2_5_VL_7B)


def lora_qwen2_5_vl_3b(
    lora_attn_modules: tuple[str, ...] | list[str] = ATTENTION,
    apply_lora_to_mlp: bool = True,
    apply_lora_to_output: bool = False,
    lora_rank: int = 16,
    lora_alpha: float = 32.0,
    lora_dropout: float = 0.05,
    quantize_base: bool = False,
    double_quant: bool = True,
    lora_parts: LoraParts = ("decoder",),
) -> Qwen2_5VL:
    """Qwen2.5-VL-3B with low-rank adapters; arguments as for :func:`lora_qwen2_5_vl_7b`.

    The output layer is the embedding table, which carries no adapter.
    """
    lora = LoraOptions.from_arguments(locals())
    return qwen2_5_vl("qwen2_5_vl_3b", QWEN2_5_VL_3B, lora=lora)


def lora_qwen2_5_vl_7b(
    lora_attn_modules: tuple[str, ...] | list[str] = ATTENTION,
    apply_lora_to_mlp: bool = True,
    apply_lora_to_output: bool = False,
    lora_rank: int = 16,
    lora_alpha: float = 32.0,
    lora_dropout: float = 0.05,
    quantize_base: bool = False,
    double_quant: bool = True,
    lora_parts: LoraParts = ("decoder",),
) -> Qwen2_5VL:
    """Qwen2.5-VL-7B with low-rank adapters, the only trainable parameters until a recipe names more.

    Args:
        lora_attn_modules: some of ``q_proj``, ``k_proj``, ``v_proj``, ``output_proj``.
        apply_lora_to_mlp: adapters in the MLPs too.
        apply_lora_to_output: adapters on the decoder's output layer too.
        lora_rank: rank of each adapter.
        lora_alpha: scale of each adapter, divided by its rank.
        lora_dropout: dropout before each adapter.
        quantize_base: keep the linear layers of adapted parts as NF4 (QLoRA), except for the MLPs of the vision tower,
            whose size does not fit NF4's blocks.
        double_quant: with ``quantize_base``, quantise the scales of NF4's blocks too: 4.13 bits per weight; without it
            4.63, and no rounding of the scales.
        lora_parts: which of ``vision`` and ``decoder`` carry adapters, or a mapping from a part to the options that
            differ there (``rank``, ``alpha``, ``dropout``, ``attn_modules``, ``mlp``, ``output``), as in
            ``{vision: {rank: 32, alpha: 64}, decoder: {rank: 128, alpha: 256}}``. To train the merger, which is trained
            in full, name ``projection`` in ``trainable``.
    """
    lora = LoraOptions.from_arguments(locals())
    return qwen2_5_vl("qwen2_5_vl_7b", QWEN2_5_VL_7B, lora=lora)


qlora_qwen2_5_vl_3b = partial(lora_qwen2_5_vl_3b, quantize_base=True)
qlora_qwen2_5_vl_3b.__doc__ = "Qwen2.5-VL-3B, adapters on an NF4 base: see ``lora_qwen2_5_vl_3b``."

qlora_qwen2_5_vl_7b = partial(lora_qwen2_5_vl_7b, quantize_base=True)
qlora_qwen2_5_vl_7b.__doc__ = "Qwen2.5-VL-7B, adapters on an NF4 base: see ``lora_qwen2_5_vl_7b``."
