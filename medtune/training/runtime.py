"""Where a run happens: one process is a world of one, torchrun's processes are one world."""

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from medtune.errors import ConfigError


@dataclass(frozen=True)
class Runtime:
    """Device, world and the few collectives that training needs; every one is a no-op in a world of one."""

    device: torch.device
    world: int = 1
    rank: int = 0

    @staticmethod
    def start(device: str = "auto") -> "Runtime":
        """Join torchrun's world when its variables are set, else be alone.

        Args:
            device: ``auto`` (cuda where there is one), ``cpu`` or ``cuda``.

        Raises:
            ConfigError: If cuda is asked for and absent.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cuda" and not torch.cuda.is_available():
            raise ConfigError(
                "device: cuda was asked for, but torch sees no GPU; set device=cpu or see `medtune doctor`"
            )
        world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
        place = torch.device(device, int(os.environ.get("LOCAL_RANK", 0))) if device == "cuda" else torch.device("cpu")
        if device == "cuda":
            torch.cuda.set_device(place)
        if world > 1 and not dist.is_initialized():
            # Rank 0 may look through a large data set before the first collective.
            dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=timedelta(hours=2))
        return Runtime(place, world, rank)

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Sum over processes, in place."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, on every process."""
        if self.world == 1:
            return [value]
        gathered: list[Any] = [None] * self.world
        dist.all_gather_object(gathered, value)
        return gathered

    def barrier(self) -> None:
        """Wait for all."""
        if self.world > 1:
            dist.barrier()

    def stop(self) -> None:
        """Leave the world."""
        if dist.is_initialized():
            dist.destroy_process_group()
