"""What every job is told."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Setting:
    """How jobs run.

    Attributes:
        tiny: mini models on the CPU in place of the real ones on the GPU.
        rounds: repetitions that are timed.
        warmup: repetitions before them.
    """

    tiny: bool
    rounds: int
    warmup: int

    @property
    def device(self) -> torch.device:
        """Where the models are."""
        return torch.device("cpu" if self.tiny else "cuda")

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and activations."""
        return torch.float32 if self.tiny else torch.bfloat16
