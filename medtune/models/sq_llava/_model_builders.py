"""SQ-LLaVA-7B: plain, with LoRA and with QLoRA."""

from functools import partial

from medtune.models.common.early_fusion import EarlyFusionVLM
from medtune.models.llava._model_builders import IMAGE_ID, IMAGE_SIZE, PATCH_SIZE
from medtune.models.lora.options import LoraParts
from medtune.models.sq_llava._component_builders import LoraOptions, sq_llava_vlm
from medtune.models.sq_llava._shape import SqLlavaShape

_7B = SqLlavaShape(
    image_size=IMAGE_SIZE,
    patch_size=PATCH_SIZE,
    vision_dim=1024,
    vision_layers=24,
    vision_heads=16,
    dim=4096,
    layers=32,
    heads=32,
    kv_heads=32,
    intermediate_dim=11_008,
    vocab_size=IMAGE_ID,
    image_id=IMAGE_ID,
)


def sq_llava_7b() -> EarlyFusionVLM:
    """SQ-LLaVA-7B: CLIP ViT-L/14-336, 256 prototypes, Vicuna-7B. Every parameter is trainable until a recipe decides.

    Weights: SQ-LLaVA's own, merged and in safetensors, or those of a LLaVA-1.5-7B, with which the prototypes start
    fresh.
    """
    return sq_llava_vlm("sq_llava_7b", _7B)


def lora_sq_llava_7b(
    lora_attn_modules: list[str],
    apply_lora_to_mlp: bool = False,
    apply_lora_to_output: bool = False,
    lora_rank: int = 8,
    lora_alpha: float = 16.0,
    lora_dropout: float = 0.0,
    quantize_base: bool = False,
    lora_parts: LoraParts = ("decoder",),
) -> EarlyFusionVLM:
    """SQ-LLaVA-7B with low-rank adapters; arguments as for :func:`medtune.models.llava.lora_llava1_5_7b`.

    ``vision`` and ``decoder`` can carry adapters; STLLaVA-Med gives them rank 32 and 128, and trains ``projection``
    fully (``trainable: [adapter, projection]``).
    """
    return sq_llava_vlm("sq_llava_7b", _7B, lora=LoraOptions.from_arguments(locals()))


qlora_sq_llava_7b = partial(lora_sq_llava_7b, quantize_base=True)
qlora_sq_llava_7b.__doc__ = "SQ-LLaVA-7B, adapters on an NF4 base: see ``lora_sq_llava_7b``."
