"""LLaVA-1.5 in two sizes, LLaVA-Med v1.5 and HuatuoGPT-Vision-7B: plain, with LoRA and with QLoRA."""

from dataclasses import replace
from functools import partial

from medtune.models.common.early_fusion import EarlyFusionVLM
from medtune.models.llava._component_builders import LoraOptions, llava_vlm
from medtune.models.llava._shape import Layout, LlavaShape
from medtune.models.lora.options import LoraParts

IMAGE_SIZE, PATCH_SIZE = 336, 14  # CLIP ViT-L/14-336
IMAGE_ID = 32_000  # the first row after Vicuna's vocabulary
_ROWS = 32_064  # llava-hf pads the vocabulary to a multiple of 64


def _shape(*, dim: int, layers: int, heads: int, intermediate_dim: int) -> LlavaShape:
    return LlavaShape(
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        vision_dim=1024,
        vision_layers=24,
        vision_heads=16,
        dim=dim,
        layers=layers,
        heads=heads,
        kv_heads=heads,
        intermediate_dim=intermediate_dim,
        vocab_size=_ROWS,
        image_id=IMAGE_ID,
    )


LLAVA1_5 = _shape(dim=4096, layers=32, heads=32, intermediate_dim=11_008)
LLAVA1_5_13B = _shape(dim=5120, layers=40, heads=40, intermediate_dim=13_824)


# LLaVA-Med v1.5: Mistral-7B-Instruct-v0.2, whose text has no sliding window. Its own vocabulary has 32,000 tokens.
LLAVA_MED = replace(
    _shape(dim=4096, layers=32, heads=32, intermediate_dim=14_336),
    decoder="mistral",
    kv_heads=8,
    rope_base=1_000_000.0,
    max_seq_len=32_768,
)
# HuatuoGPT-Vision-7B: Qwen2-7B; its own table of 152,064 rows ends before the image token.
HUATUO = replace(
    _shape(dim=3584, layers=28, heads=28, intermediate_dim=18_944),
    decoder="qwen2",
    kv_heads=4,
    norm_eps=1e-6,
    rope_base=1_000_000.0,
    vocab_size=152_128,
    image_id=152_064,
    max_seq_len=32_768,
    bos_id=151_643,
    eos_id=151_645,
    pad_id=151_643,
)


def llava1_5_7b(layout: Layout = "hf") -> EarlyFusionVLM:
    """LLaVA-1.5-7B: CLIP ViT-L/14-336, Vicuna-7B. Every parameter is trainable until a recipe freezes parts.

    Args:
        layout: layout of exports: ``hf`` (llava-hf's, of transformers) or ``original`` (the LLaVA authors'). Weights of
            either layout are read.
    """
    return llava_vlm("llava1_5_7b", LLAVA1_5, layout=layout)


def llava1_5_13b(layout: Layout = "hf") -> EarlyFusionVLM:
    """LLaVA-1.5-13B: CLIP ViT-L/14-336, Vicuna-13B; the argument is that of :func:`llava1_5_7b`."""
    return llava_vlm("llava1_5_13b", LLAVA1_5_13B, layout=layout)


def llava_med_v1_5_7b(layout: Layout = "original") -> EarlyFusionVLM:
    """LLaVA-Med v1.5 (Mistral-7B): CLIP ViT-L/14-336, Mistral-7B-Instruct-v0.2.

    Args:
        layout: see :func:`llava1_5_7b`; ``microsoft/llava-med-v1.5-mistral-7b`` has the authors' layout.
    """
    return llava_vlm("llava_med_v1_5_7b", LLAVA_MED, layout=layout)


def huatuogpt_vision_7b(layout: Layout = "original") -> EarlyFusionVLM:
    """HuatuoGPT-Vision-7B (PubMedVision's model): CLIP ViT-L/14-336, Qwen2-7B.

    Args:
        layout: see :func:`llava1_5_7b`; ``FreedomIntelligence/HuatuoGPT-Vision-7B`` has the authors' layout.
    """
    return llava_vlm("huatuogpt_vision_7b", HUATUO, layout=layout)


def lora_llava1_5_7b(
    lora_attn_modules: list[str],
    apply_lora_to_mlp: bool = False,
    apply_lora_to_output: bool = False,
    lora_rank: int = 8,
    lora_alpha: float = 16.0,
    lora_dropout: float = 0.0,
    quantize_base: bool = False,
    lora_parts: LoraParts = ("decoder",),
    layout: Layout = "hf",
) -> EarlyFusionVLM:
    """LLaVA-1.5-7B with low-rank adapters, the only trainable parameters.

    A recipe may also train the projection (``trainable: [adapter, projection]``), as the authors do.

    Args:
        lora_attn_modules: some of ``q_proj``, ``k_proj``, ``v_proj``, ``output_proj``.
        apply_lora_to_mlp: adapters in the MLPs too.
        apply_lora_to_output: adapters on the decoder's output layer too.
        lora_rank: rank of each adapter.
        lora_alpha: scale of each adapter, divided by its rank.
        lora_dropout: dropout before each adapter.
        quantize_base: keep the linear layers of the adapted ``vision`` and ``decoder`` as NF4 (QLoRA).
        lora_parts: which of ``vision``, ``projection`` and ``decoder`` carry adapters, or a mapping from a part to the
            options that differ there (``rank``, ``alpha``, ``dropout``, ``attn_modules``, ``mlp``, ``output``), as in
            ``{vision: {rank: 32, alpha: 64}, decoder: {rank: 128, alpha: 256}}``.
        layout: see :func:`llava1_5_7b`.
    """
    lora = LoraOptions.from_arguments(locals())
    return llava_vlm("llava1_5_7b", LLAVA1_5, layout=layout, lora=lora)


def lora_llava1_5_13b(
    lora_attn_modules: list[str],
    apply_lora_to_mlp: bool = False,
    apply_lora_to_output: bool = False,
    lora_rank: int = 8,
    lora_alpha: float = 16.0,
    lora_dropout: float = 0.0,
    quantize_base: bool = False,
    lora_parts: LoraParts = ("decoder",),
    layout: Layout = "hf",
) -> EarlyFusionVLM:
    """LLaVA-1.5-13B with low-rank adapters; arguments as for :func:`lora_llava1_5_7b`."""
    lora = LoraOptions.from_arguments(locals())
    return llava_vlm("llava1_5_13b", LLAVA1_5_13B, layout=layout, lora=lora)


def lora_llava_med_v1_5_7b(
    lora_attn_modules: list[str],
    apply_lora_to_mlp: bool = False,
    apply_lora_to_output: bool = False,
    lora_rank: int = 8,
    lora_alpha: float = 16.0,
    lora_dropout: float = 0.0,
    quantize_base: bool = False,
    lora_parts: LoraParts = ("decoder",),
    layout: Layout = "original",
) -> EarlyFusionVLM:
    """LLaVA-Med v1.5 with low-rank adapters; arguments as for :func:`lora_llava1_5_7b`."""
    lora = LoraOptions.from_arguments(locals())
    return llava_vlm("llava_med_v1_5_7b", LLAVA_MED, layout=layout, lora=lora)


def lora_huatuogpt_vision_7b(
    lora_attn_modules: list[str],
    apply_lora_to_mlp: bool = False,
    apply_lora_to_output: bool = False,
    lora_rank: int = 8,
    lora_alpha: float = 16.0,
    lora_dropout: float = 0.0,
    quantize_base: bool = False,
    lora_parts: LoraParts = ("decoder",),
    layout: Layout = "original",
) -> EarlyFusionVLM:
    """HuatuoGPT-Vision-7B with low-rank adapters; arguments as for :func:`lora_llava1_5_7b`."""
    lora = LoraOptions.from_arguments(locals())
    return llava_vlm("huatuogpt_vision_7b", HUATUO, layout=layout, lora=lora)


qlora_llava1_5_7b = partial(lora_llava1_5_7b, quantize_base=True)
qlora_llava1_5_7b.__doc__ = "LLaVA-1.5-7B, adapters on an NF4 base: see ``lora_llava1_5_7b``."

qlora_llava1_5_13b = partial(lora_llava1_5_13b, quantize_base=True)
qlora_llava1_5_13b.__doc__ = "LLaVA-1.5-13B, adapters on an NF4 base: see ``lora_llava1_5_13b``."

qlora_llava_med_v1_5_7b = partial(lora_llava_med_v1_5_7b, quantize_base=True)
qlora_llava_med_v1_5_7b.__doc__ = "LLaVA-Med v1.5, adapters on an NF4 base: see ``lora_llava_med_v1_5_7b``."

qlora_huatuogpt_vision_7b = partial(lora_huatuogpt_vision_7b, quantize_base=True)
qlora_huatuogpt_vision_7b.__doc__ = "HuatuoGPT-Vision-7B, adapters on an NF4 base: see ``lora_huatuogpt_vision_7b``."
