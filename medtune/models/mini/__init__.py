"""Models of every family's architecture for a laptop, with their own tokenizer."""

from medtune.models.mini._drill_transform import mini_drill_transform, mini_internvl_drill_transform
from medtune.models.mini._gemma3 import lora_mini_gemma3, mini_gemma3, mini_gemma3_transform, qlora_mini_gemma3
from medtune.models.mini._internvl import lora_mini_internvl, mini_internvl, qlora_mini_internvl
from medtune.models.mini._internvl_transform import mini_internvl_transform
from medtune.models.mini._llava import lora_mini_llava, mini_llava, mini_llava_transform, qlora_mini_llava
from medtune.models.mini._model_builders import lora_mini_vlm, mini_vlm, qlora_mini_vlm
from medtune.models.mini._qwen2_5_vl import (
    lora_mini_qwen2_5_vl,
    mini_qwen2_5_vl,
    mini_qwen2_5_vl_transform,
    qlora_mini_qwen2_5_vl,
)
from medtune.models.mini._sq_llava import lora_mini_sq_llava, mini_sq_llava, qlora_mini_sq_llava
from medtune.models.mini._tokenizer import MiniTokenizer, train_mini_tokenizer
from medtune.models.mini._transform import mini_transform

__all__ = [
    "MiniTokenizer",
    "lora_mini_gemma3",
    "lora_mini_internvl",
    "lora_mini_llava",
    "lora_mini_qwen2_5_vl",
    "lora_mini_sq_llava",
    "lora_mini_vlm",
    "mini_drill_transform",
    "mini_gemma3",
    "mini_internvl",
    "mini_gemma3_transform",
    "mini_internvl_drill_transform",
    "mini_internvl_transform",
    "mini_llava",
    "mini_llava_transform",
    "mini_qwen2_5_vl",
    "mini_qwen2_5_vl_transform",
    "mini_sq_llava",
    "mini_transform",
    "mini_vlm",
    "qlora_mini_gemma3",
    "qlora_mini_internvl",
    "qlora_mini_llava",
    "qlora_mini_qwen2_5_vl",
    "qlora_mini_sq_llava",
    "qlora_mini_vlm",
    "train_mini_tokenizer",
]
