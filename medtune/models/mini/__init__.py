"""A model of Llama-3.2-Vision's shape, small enough for a laptop, with its own tokenizer."""

from medtune.models.mini._model_builders import lora_mini_vlm, mini_vlm, qlora_mini_vlm
from medtune.models.mini._tokenizer import MiniTokenizer, train_mini_tokenizer
from medtune.models.mini._transform import mini_transform

__all__ = ["MiniTokenizer", "lora_mini_vlm", "mini_transform", "mini_vlm", "qlora_mini_vlm", "train_mini_tokenizer"]
