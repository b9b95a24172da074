"""LLaVA-1.5, LLaVA-Med v1.5 and HuatuoGPT-Vision, and the components that all models of the architecture share."""

from medtune.models.llava._convert_weights import original_names
from medtune.models.llava._images import SquareTiler
from medtune.models.llava._model_builders import (
    huatuogpt_vision_7b,
    llava1_5_7b,
    llava1_5_13b,
    llava_med_v1_5_7b,
    lora_huatuogpt_vision_7b,
    lora_llava1_5_7b,
    lora_llava1_5_13b,
    lora_llava_med_v1_5_7b,
    qlora_huatuogpt_vision_7b,
    qlora_llava1_5_7b,
    qlora_llava1_5_13b,
    qlora_llava_med_v1_5_7b,
)
from medtune.models.llava._transform import huatuogpt_vision_transform, llava1_5_transform, llava_med_transform

__all__ = [
    "SquareTiler",
    "huatuogpt_vision_7b",
    "huatuogpt_vision_transform",
    "llava1_5_13b",
    "llava1_5_7b",
    "llava1_5_transform",
    "llava_med_transform",
    "llava_med_v1_5_7b",
    "lora_huatuogpt_vision_7b",
    "lora_llava1_5_13b",
    "lora_llava1_5_7b",
    "lora_llava_med_v1_5_7b",
    "original_names",
    "qlora_huatuogpt_vision_7b",
    "qlora_llava1_5_13b",
    "qlora_llava1_5_7b",
    "qlora_llava_med_v1_5_7b",
]
