"""InternVL2-2B and InternVL3-8B: plain, with LoRA and with QLoRA."""

from functools import partial
from typing import Any

from medtune.models.common.early_fusion import EarlyFusionVLM
from medtune.models.internvl._component_builders import LoraOptions, internvl_vlm
from medtune.models.internvl._shape import InternVLShape, Layout
from medtune.models.lora.options import ATTENTION, LoraParts

# Both models use InternViT-300M-448px.
_VISION: dict[str, Any] = {
    "image_size": 448,
    "patch_size": 14,
    "vision_dim": 1024,
    "vision_layers": 24,
    "vision_heads": 16,
    "vision_mlp_dim": 4096,
}
INTERNVL2_2B = InternVLShape(
    **_VISION,
    decoder="internlm2",
    dim=2048,
    layers=24,
    heads=16,
    kv_heads=8,
    mlp_dim=8192,
    vocab_size=92_553,
    image_id=92_546,
    bos_id=1,
    eos_id=92_542,
    pad_id=2,
    norm_eps=1e-5,
)
INTERNVL3_8B = InternVLShape(
    **_VISION,
    decoder="qwen2",
    dim=3584,
    layers=28,
    heads=28,
    kv_heads=4,
    mlp_dim=18_944,
    vocab_size=151_674,
    image_id=151_667,
    bos_id=151_643,
    eos_id=151_645,
    pad_id=151_643,
    norm_eps=1e-6,
)


def internvl2_2b(layout: Layout = "original") -> EarlyFusionVLM:
    """InternVL2-2B (InternViT-300M, InternLM2-1.8B), every parameter trainable until a recipe freezes parts.

    Args:
        layout: layout of exports: ``original`` (OpenGVLab's, the only one on the hub) or ``hf``
            (transformers'; adapters in PEFT's format need it). Weights of either layout are read.
    """
    return internvl_vlm("internvl2_2b", INTERNVL2_2B, layout=layout)


def internvl3_8b(layout: Layout = "hf") -> EarlyFusionVLM:
    """InternVL3-8B (InternViT-300M, Qwen2.5-7B), every parameter trainable until a recipe freezes parts.

    Args:
        layout: layout of exports: ``hf`` (``OpenGVLab/InternVL3-8B-hf``) or ``original``
            (``OpenGVLab/InternVL3-8B``). Weights of either layout are read.
    """
    return internvl_vlm("internvl3_8b", INTERNVL3_8B, layout=layout)


def lora_internvl2_2b(
    lora_attn_modules: tuple[str, ...] | list[str] = ATTENTION,
    apply_lora_to_mlp: bool = True,
    apply_lora_to_output: bool = False,
    lora_rank: int = 16,
    lora_alpha: float = 32.0,
    lora_dropout: float = 0.05,
    quantize_base: bool = False,
    double_quant: bool = True,
    lora_parts: LoraParts = ("decoder",),
    layout: Layout = "original",
) -> EarlyFusionVLM:
    """InternVL2-2B with low-rank adapters, the only trainable parameters until a recipe names more.

    The defaults are those of InternVL's LoRA script: all linear layers of the decoder except its output, rank 16,
    alpha 32, dropout 0.05. In that script q, k and v share one adapter of rank 16; here each has its own.

    Args:
        lora_attn_modules: some of ``q_proj``, ``k_proj``, ``v_proj``, ``output_proj``.
        apply_lora_to_mlp: adapters in the MLPs too.
        apply_lora_to_output: adapters on the decoder's output layer too.
        lora_rank: rank of each adapter.
        lora_alpha: scale of each adapter, divided by its rank.
        lora_dropout: dropout before each adapter.
        quantize_base: keep the linear layers of adapted parts as NF4 (QLoRA).
        double_quant: with ``quantize_base``, quantise the scales of NF4's blocks too: 4.13 bits per weight; without it
            4.63, and no rounding of the scales.
        lora_parts: which of ``vision`` and ``decoder`` carry adapters, or a mapping from a part to the options that
            differ there (``rank``, ``alpha``, ``dropout``, ``attn_modules``, ``mlp``, ``output``), as in
            ``{vision: {rank: 32, alpha: 64}, decoder: {rank: 128, alpha: 256}}``. To train the connector, which is
            trained in full, name ``projection`` in ``trainable``.
        layout: see :func:`internvl2_2b`.
    """
    lora = LoraOptions.from_arguments(locals())
    return internvl_vlm("internvl2_2b", INTERNVL2_2B, layout=layout, lora=lora)


def lora_internvl3_8b(
    lora_attn_modules: tuple[str, ...] | list[str] = ATTENTION,
    apply_lora_to_mlp: bool = True,
    apply_lora_to_output: bool = False,
    lora_rank: int = 16,
    lora_alpha: float = 32.0,
    lora_dropout: float = 0.05,
    quantize_base: bool = False,
    double_quant: bool = True,
    lora_parts: LoraParts = ("decoder",),
    layout: Layout = "hf",
) -> EarlyFusionVLM:
    """InternVL3-8B with low-rank adapters; arguments as for :func:`lora_internvl2_2b`."""
    lora = LoraOptions.from_arguments(locals())
    return internvl_vlm("internvl3_8b", INTERNVL3_8B, layout=layout, lora=lora)


qlora_internvl2_2b = partial(lora_internvl2_2b, quantize_base=True)
qlora_internvl2_2b.__doc__ = "InternVL2-2B, adapters on an NF4 base: see ``lora_internvl2_2b``."

qlora_internvl3_8b = partial(lora_internvl3_8b, quantize_base=True)
qlora_internvl3_8b.__doc__ = "InternVL3-8B, adapters on an NF4 base: see ``lora_internvl3_8b``."
