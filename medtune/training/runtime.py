"""Where a run happens: one process is a world of one, torchrun's processes are one world."""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torchao.dtypes.nf4tensor import NF4Tensor

from medtune.errors import ConfigError, MedtuneError, TrainingError

T = TypeVar("T")
# The first process looks through a large data set while the others wait; later it writes a checkpoint meanwhile.
SETUP_TIMEOUT = timedelta(hours=2)
STEP_TIMEOUT = timedelta(minutes=30)


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
            ConfigError: If cuda is asked for and absent, or the machine has fewer GPUs than processes.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cuda" and not torch.cuda.is_available():
            raise ConfigError(
                "device: cuda was asked for, but torch sees no GPU; set device=cpu or see `medtune doctor`"
            )
        world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
        place = torch.device(device)
        if device == "cuda":
            place = torch.device(device, int(os.environ.get("LOCAL_RANK", 0)))
            if place.index >= torch.cuda.device_count():
                raise ConfigError(
                    f"device: process {place.index} finds {torch.cuda.device_count()} GPUs here; "
                    "start as many processes as there are GPUs (--nproc_per_node)"
                )
            torch.cuda.set_device(place)
        if world > 1 and not dist.is_initialized():
            # gloo beside NCCL: counts that lie in host memory are summed there, without waiting for the device.
            backend = "cuda:nccl,cpu:gloo" if device == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=SETUP_TIMEOUT)
        return Runtime(place, world, rank)

    def settle(self) -> None:
        """Setting up is over: from here on a process that does not answer is given up much sooner."""
        if self.world > 1:
            dist.distributed_c10d._set_pg_timeout(STEP_TIMEOUT)

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Say in a sentence that a collective failed because another process has gone.

        Raises:
            TrainingError: In place of the backend's own error.
        """
        try:
            yield
        except RuntimeError as error:
            if self.world == 1 or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
                raise
            raise TrainingError(
                f"process {self.rank} of {self.world}: another process of this run has gone, or did not answer in time "
                f"({str(error).splitlines()[0]}). Its own output says why. Give the same command again to go on from "
                "what was written last."
            ) from error

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Sum over processes, in place."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def sum_on_host(self, values: list[float]) -> list[float]:
        """Sum plain numbers over processes, in host memory and fp64."""
        if self.world == 1:
            return values
        held = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(held)
        return held.tolist()

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, on every process."""
        if self.world == 1:
            return [value]
        gathered: list[Any] = [None] * self.world
        dist.all_gather_object(gathered, value)
        return gathered

    def collect(self, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        """Whole copies on the CPU of the first process, gathered from their shards one by one; empty elsewhere."""
        kept = {}
        for name, value in tensors:
            full = _whole(value.detach())
            if self.is_main:
                kept[name] = full.to("cpu", copy=True).contiguous()
        return kept

    def on_all_ranks(self, work: Callable[[], T]) -> T:
        """Do ``work`` on this process; an error that a user can mend, on any process, is raised on all.

        Without it the others would wait in their next collective for a process that has gone.
        """
        if self.world == 1:
            return work()
        error: MedtuneError | None = None
        result: Any = None
        try:
            result = work()
        except MedtuneError as raised:
            error = raised
        if self.sum(torch.tensor(float(error is not None), device=self.device)).item():
            found = self.gather((type(error), str(error)) if error else None)
            kind, message = next(entry for entry in found if entry)
            raise kind(message) from error
        return result

    def on_rank0(self, work: Callable[[], T]) -> T:
        """What the first process finds (it must be picklable), on every process; its error too."""
        found = self.gather(self.on_all_ranks(lambda: work() if self.is_main else None))
        return found[0]

    def stop(self) -> None:
        """Leave the world.

        gloo's threads let go of a collective's tensors only after it is over, for which they need Python's lock. One
        that has not done so when the interpreter ends aborts the process (seen in every second run); the pause lets it.
        """
        if self.world > 1 and dist.is_initialized():
            if self.device.type == "cpu":
                time.sleep(0.3)
            dist.destroy_process_group()


@torch.no_grad()
def _whole(value: Tensor) -> Tensor:
    """A tensor gathered from its shards; 4-bit ones are unpacked first, since they cannot be gathered."""
    if not isinstance(value, DTensor):
        return value
    local = value.to_local()
    if isinstance(local, NF4Tensor):
        value = DTensor.from_local(
            local.to(local.dtype), value.device_mesh, value.placements, shape=value.shape, stride=value.stride()
        )
    return value.full_tensor()
