"""InternVL: InternViT, pixel shuffle and an MLP in front of InternLM2 (InternVL2-2B) or Qwen2.5 (InternVL3-8B)."""

from medtune.models.internvl._images import DynamicTiler
from medtune.models.internvl._model_builders import (
    internvl2_2b,
    internvl3_8b,
    lora_internvl2_2b,
    lora_internvl3_8b,
    qlora_internvl2_2b,
    qlora_internvl3_8b,
)
from medtune.models.internvl._transform import internvl2_transform, internvl3_transform

__all__ = [
    "DynamicTiler",
    "internvl2_2b",
    "internvl2_transform",
    "internvl3_8b",
    "internvl3_transform",
    "lora_internvl2_2b",
    "lora_internvl3_8b",
    "qlora_internvl2_2b",
    "qlora_internvl3_8b",
]
