"""Gemma 3 and MedGemma."""

from medtune.models.gemma3._images import SquashTiler
from medtune.models.gemma3._model_builders import (
    gemma3_4b,
    gemma3_27b,
    lora_gemma3_4b,
    lora_gemma3_27b,
    lora_medgemma_4b,
    medgemma_4b,
    qlora_gemma3_4b,
    qlora_gemma3_27b,
    qlora_medgemma_4b,
)
from medtune.models.gemma3._transform import gemma3_transform

__all__ = [
    "SquashTiler",
    "gemma3_27b",
    "gemma3_4b",
    "gemma3_transform",
    "lora_gemma3_27b",
    "lora_gemma3_4b",
    "lora_medgemma_4b",
    "medgemma_4b",
    "qlora_gemma3_27b",
    "qlora_gemma3_4b",
    "qlora_medgemma_4b",
]
