"""LLaVA-1.5, and the components that all models of its architecture share."""

from medtune.models.llava._convert_weights import original_names
from medtune.models.llava._images import SquareTiler
from medtune.models.llava._model_builders import (
    llava1_5_7b,
    llava1_5_13b,
    lora_llava1_5_7b,
    lora_llava1_5_13b,
    qlora_llava1_5_7b,
    qlora_llava1_5_13b,
)
from medtune.models.llava._transform import llava1_5_transform

__all__ = [
    "SquareTiler",
    "llava1_5_13b",
    "llava1_5_7b",
    "llava1_5_transform",
    "lora_llava1_5_13b",
    "lora_llava1_5_7b",
    "original_names",
    "qlora_llava1_5_13b",
    "qlora_llava1_5_7b",
]
