"""A recipe on several processes: forked, and told what torchrun would tell them."""

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from tests.runs import _free_port


def forked(recipe: Callable[[], int]) -> BaseProcess:
    """Start a recipe in a process of its own, which ends with its status and takes SIGINT as Python does."""

    def run() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it otherwise
        os._exit(recipe())

    child = multiprocessing.get_context("fork").Process(target=run)
    child.start()
    return child


def ended(child: BaseProcess) -> int | None:
    """Wait for a process; return its exit status, negative for a signal."""
    child.join(120)
    return child.exitcode


def start(
    recipe: Callable[[list[str]], int],
    folder: Path,
    processes: int,
    words: list[str],
    harm: Callable[[int], None] | None = None,
) -> list[BaseProcess]:
    """Start a recipe's ``main`` in forked processes; what each says goes to ``said<rank>``.

    Args:
        recipe: Takes the arguments, and returns the exit status.
        folder: For what the processes say.
        processes: How many.
        words: The arguments.
        harm: Called in each process with its rank before the run; patches in whatever shall go wrong.
    """
    context, port = multiprocessing.get_context("fork"), _free_port()
    folder.mkdir(parents=True, exist_ok=True)

    def live(rank: int) -> None:
        torch.set_num_threads(1)
        told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in told.items()}, MASTER_ADDR="127.0.0.1")
        if harm is not None:
            harm(rank)
        with (folder / f"said{rank}").open("w") as said:
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                status = recipe(words)
        os._exit(status)

    children: list[BaseProcess] = [context.Process(target=live, args=(rank,)) for rank in range(processes)]
    for child in children:
        child.start()
    return children
