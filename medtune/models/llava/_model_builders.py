"""LLaVA-1.5 in its two sizes: plain, with LoRA and with QLoRA."""

from functools import partial

from medtune.models.common.early_fusion import EarlyFusionVLM
from medtune.models.llava._component_builders import LoraOptions, llava_vlm
from medtune.models.llava._shape import LlavaShape
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


_7B = _shape(dim=4096, layers=32, heads=32, intermediate_dim=11_008)
_13B = _shape(dim=5120, layers=40, heads=40, intermediate_dim=13_824)


def llava1_5_7b() -> EarlyFusionVLM:
    """LLaVA-1.5-7B: CLIP ViT-L/14-336, Vicuna-7B. Every parameter is trainable until a recipe freezes parts."""
    return llava_vlm("llava1_5_7b", _7B)


def llava1_5_13b() -> EarlyFusionVLM:
    """LLaVA-1.5-13B: CLIP ViT-L/14-336, Vicuna-13B. Every parameter is trainable until a recipe freezes parts."""
    return llava_vlm("llava1_5_13b", _13B)


def lora_llava1_5_7b(
    lora_attn_modules: list[str],
    apply_lora_to_mlp: bool = False,
    apply_lora_to_output: bool = False,
    lora_rank: int = 8,
    lora_alpha: float = 16.0,
    lora_dropout: float = 0.0,
    quantize_base: bool = False,
    lora_parts: LoraParts = ("decoder",),
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
    """
    lora = LoraOptions.from_arguments(locals())
    return llava_vlm("llava1_5_7b", _7B, lora=lora)


def lora_llava1_5_13b(
    lora_attn_modules: list[str],
    apply_lora_to_mlp: bool = False,
    apply_lora_to_output: bool = False,
    lora_rank: int = 8,
    lora_alpha: float = 16.0,
    lora_dropout: float = 0.0,
    quantize_base: bool = False,
    lora_parts: LoraParts = ("decoder",),
) -> EarlyFusionVLM:
    """LLaVA-1.5-13B with low-rank adapters; arguments as for :func:`lora_llava1_5_7b`."""
    lora = LoraOptions.from_arguments(locals())
    return llava_vlm("llava1_5_13b", _13B, lora=lora)


qlora_llava1_5_7b = partial(lora_llava1_5_7b, quantize_base=True)
qlora_llava1_5_7b.__doc__ = "LLaVA-1.5-7B, adapters on an NF4 base: see ``lora_llava1_5_7b``."

qlora_llava1_5_13b = partial(lora_llava1_5_13b, quantize_base=True)
qlora_llava1_5_13b.__doc__ = "LLaVA-1.5-13B, adapters on an NF4 base: see ``lora_llava1_5_13b``."
