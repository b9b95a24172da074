"""Device and process group of a run. A single process has world size 1; otherwise torchrun starts the processes."""

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
# At the start the others wait while the first process checks the data; later, while it writes a checkpoint.
SETUP_TIMEOUT = timedelta(hours=2)
STEP_TIMEOUT = timedelta(minutes=30)
# A finished process waits for the slowest one. If that one dies, its closed connection is noticed at once.
ANSWERING_TIMEOUT = timedelta(days=7)


@dataclass(frozen=True)
class Runtime:
    """Device, world size, rank, and the few collectives that training needs; with one process they do nothing."""

    device: torch.device
    world: int = 1
    rank: int = 0

    @staticmethod
    def start(device: str = "auto") -> "Runtime":
        """Join torchrun's process group if its environment variables are set; otherwise use one process.

        Args:
            device: ``auto`` (cuda if there is a GPU), ``cpu`` or ``cuda``.

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
            # gloo in addition to NCCL: counts in host memory are summed there, without waiting for the device.
            backend = "cuda:nccl,cpu:gloo" if device == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=SETUP_TIMEOUT)
        return Runtime(place, world, rank)

    @staticmethod
    @contextmanager
    def answering(recipe: str, remote: bool) -> Iterator["Runtime"]:
        """Join torchrun's processes to exchange ids and counts, on the CPU; leave them at the end of the block.

        Args:
            recipe: Name of the recipe, for the message.
            remote: Whether a server answers; it is asked by one process.

        Raises:
            ConfigError: If several processes would ask a server.
            TrainingError: See :meth:`explained`.
        """
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world > 1 and remote:
            raise ConfigError(
                f"a server is asked by one process, with backend.concurrency requests in flight; start {recipe} "
                "without --nproc_per_node"
            )
        if world > 1 and not dist.is_initialized():
            dist.init_process_group("gloo", timeout=ANSWERING_TIMEOUT)
        runtime = Runtime(torch.device("cpu"), world, int(os.environ.get("RANK", "0")))
        try:
            with runtime.explained():
                yield runtime
        finally:
            runtime.stop()

    def settle(self) -> None:
        """Call after the setup: from now on the timeout for a process that does not answer is much shorter."""
        if self.world > 1:
            dist.distributed_c10d._set_pg_timeout(STEP_TIMEOUT)

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Replace the backend's error by a clear message if a collective failed because another process has ended.

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
        summed = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(summed)
        return summed.tolist()

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, on every process."""
        if self.world == 1:
            return [value]
        gathered: list[Any] = [None] * self.world
        dist.all_gather_object(gathered, value)
        return gathered

    def collect(self, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        """Unsharded copies on the CPU of the first process, gathered one by one; empty on the other processes."""
        copies = {}
        for name, value in tensors:
            full = _whole(value.detach())
            if self.is_main:
                copies[name] = full.to("cpu", copy=True).contiguous()
        return copies

    def on_all_ranks(self, work: Callable[[], T]) -> T:
        """Run ``work`` on this process; a MedtuneError on any rank is raised on every rank.

        Otherwise the other ranks would wait in their next collective for a process that has ended.
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
            errors = self.gather((type(error), str(error)) if error else None)
            kind, message = next(entry for entry in errors if entry)
            raise kind(message) from error
        return result

    def on_rank0(self, work: Callable[[], T]) -> T:
        """Run ``work`` on the first process; its result (which must be picklable) or error reaches every process."""
        results = self.gather(self.on_all_ranks(lambda: work() if self.is_main else None))
        return results[0]

    def stop(self) -> None:
        """Leave the process group.

        gloo's threads release the tensors of a collective after it has ended, and need Python's global lock for it. If
        a thread has not done so when the interpreter ends, the process aborts (seen in every second run). The pause
        gives the threads time.
        """
        if self.world > 1 and dist.is_initialized():
            if self.device.type == "cpu":
                time.sleep(0.3)
            dist.destroy_process_group()


@torch.no_grad()
def _whole(value: Tensor) -> Tensor:
    """A tensor gathered from its shards; 4-bit tensors are unpacked first, because they cannot be gathered."""
    if not isinstance(value, DTensor):
        return value
    local = value.to_local()
    if isinstance(local, NF4Tensor):
        value = DTensor.from_local(
            local.to(local.dtype), value.device_mesh, value.placements, shape=value.shape, stride=value.stride()
        )
    return value.full_tensor()
