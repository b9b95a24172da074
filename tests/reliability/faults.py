"""Faults that tests bring into a run's processes, and what a mended run is compared with."""

import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from medtune.training.checkpointer import Checkpointer
from medtune.training.trainer import Trainer
from tests.runs import launch, metrics, tiny, weights

Harm = Callable[[], None]


def at(step: int, fault: Callable[[Trainer], None], rank: int = 0) -> Harm:
    """Bring a fault into one process as it begins a step."""

    def harm() -> None:
        original = Trainer._optimizer_step

        def instead(self: Trainer, batches: list[dict[str, Any]]) -> int:
            if self.step == step and self.runtime.rank == rank:
                fault(self)
            return original(self, batches)

        Trainer._optimizer_step = instead  # type: ignore[method-assign]

    return harm


def full_disk(room: int) -> None:
    """No file of this process may grow beyond ``room`` bytes: the system refuses a write, as on a full disk."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)  # what a test's output is collected in is a file too
    os.dup2(nowhere, 2)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))


def full_disk_at_checkpoint(number: int) -> Harm:
    """A disk that is full from that checkpoint on (the first is 0), after some thousand bytes of it."""

    def harm() -> None:
        original, calls = Checkpointer.save, iter(range(10**6))

        def save(self: Checkpointer, *args: Any) -> None:
            if next(calls) == number:
                full_disk(8000)
            original(self, *args)

        Checkpointer.save = save  # type: ignore[method-assign]

    return harm


def all_of(*harms: Harm) -> Harm:
    """Several faults in one run."""

    def harm() -> None:
        for one in harms:
            one()

    return harm


def said(folder: Path, world: int = 1) -> list[str]:
    """The one line that each process ended with."""
    return [(folder / f"error_{rank}.txt").read_text() for rank in range(world)]


def steps_saved(folder: Path) -> list[int]:
    """Steps of the checkpoints, oldest first; nothing else may lie beside them."""
    return sorted(int(path.name.removeprefix("step_")) for path in (folder / "checkpoints").iterdir())


def straight(folder: Path, world: int = 1, **changes: Any) -> Path:
    """A run that nothing happens to."""
    assert launch(tiny(folder, **changes), world) == [0] * world
    return folder


def assert_same_run(found: Path, expected: Path) -> None:
    """Every logged number and every weight is that of another run, to the bit."""
    assert metrics(found) == metrics(expected)
    ours, theirs = weights(found), weights(expected)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(value, ours[name]), name
