"""Low-rank adapters: options, merging, names, PEFT's files, and several adapters on one base model."""

from medtune.models.lora.options import AdapterOptions

__all__ = ["AdapterOptions"]
