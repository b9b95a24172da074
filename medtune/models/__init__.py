"""Models: the interface that every method uses, one package per family, and models built from a folder alone."""

from medtune.models.from_checkpoint import (
    from_checkpoint,
    from_checkpoint_transform,
    lora_from_checkpoint,
    qlora_from_checkpoint,
)

__all__ = ["from_checkpoint", "from_checkpoint_transform", "lora_from_checkpoint", "qlora_from_checkpoint"]
