"""Low-rank adapters: options, layers, names, PEFT's files, several on one base."""

from medtune.models.lora.options import AdapterOptions

__all__ = ["AdapterOptions"]
