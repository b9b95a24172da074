"""SQ-LLaVA: LLaVA-1.5 with the prototype extractor as its projection."""

from medtune.models.sq_llava._model_builders import lora_sq_llava_7b, qlora_sq_llava_7b, sq_llava_7b

__all__ = ["lora_sq_llava_7b", "qlora_sq_llava_7b", "sq_llava_7b"]
