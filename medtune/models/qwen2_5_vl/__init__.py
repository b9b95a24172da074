"""Qwen2.5-VL: a vision tower with windows for images of any size, and Qwen2.5 with positions on three axes."""

from medtune.models.qwen2_5_vl._images import BlockCutter
from medtune.models.qwen2_5_vl._model_builders import (
    lora_qwen2_5_vl_3b,
    lora_qwen2_5_vl_7b,
    qlora_qwen2_5_vl_3b,
    qlora_qwen2_5_vl_7b,
    qwen2_5_vl_3b,
    qwen2_5_vl_7b,
)
from medtune.models.qwen2_5_vl._transform import Qwen2_5VLTransform, qwen2_5_vl_transform

__all__ = [
    "BlockCutter",
    "Qwen2_5VLTransform",
    "lora_qwen2_5_vl_3b",
    "lora_qwen2_5_vl_7b",
    "qlora_qwen2_5_vl_3b",
    "qlora_qwen2_5_vl_7b",
    "qwen2_5_vl_3b",
    "qwen2_5_vl_7b",
    "qwen2_5_vl_transform",
]
