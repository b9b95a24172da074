"""Llama-3.2-Vision, and the components that all models of its architecture share."""

from medtune.models.common.chat_template import SampleTooLong
from medtune.models.llama3_2_vision._encoder import VisionEncoder
from medtune.models.llama3_2_vision._model_builders import (
    llama3_2_vision_11b,
    llama3_2_vision_90b,
    lora_llama3_2_vision_11b,
    lora_llama3_2_vision_90b,
    qlora_llama3_2_vision_11b,
    qlora_llama3_2_vision_90b,
)
from medtune.models.llama3_2_vision._transform import DeepFusionTransform, llama3_2_vision_transform

__all__ = [
    "DeepFusionTransform",
    "SampleTooLong",
    "VisionEncoder",
    "llama3_2_vision_11b",
    "llama3_2_vision_90b",
    "llama3_2_vision_transform",
    "lora_llama3_2_vision_11b",
    "lora_llama3_2_vision_90b",
    "qlora_llama3_2_vision_11b",
    "qlora_llama3_2_vision_90b",
]
