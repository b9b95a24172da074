"""The processes in which the runs of a sweep train."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Literal

# A run whose sweep was killed has this much time to write a checkpoint before it is ended.
GRACE_SECONDS = 60


def worker_pool(processes: int) -> ProcessPoolExecutor:
    """Return a pool of so many processes, each with one thread, that end when this process was killed."""
    context = multiprocessing.get_context(start_method())
    return ProcessPoolExecutor(processes, mp_context=context, initializer=begin_worker)


def start_method() -> Literal["fork", "spawn"]:
    """Return how to start processes that train.

    A fork has all imports and begins at once. In a fork of a process that has used a GPU, or in which autograd has
    started threads, training fails: a program that has trained a model, on a GPU or compiled, before its sweep. Whether
    there are such threads is seen in a fork that tries a backward pass.
    """
    import torch

    if torch.cuda.is_initialized():
        return "spawn"
    probe = multiprocessing.get_context("fork").Process(target=_try_backward)
    probe.start()
    probe.join()
    return "fork" if probe.exitcode == 0 else "spawn"


def _try_backward() -> None:
    """End this process, with status 1 if a backward pass is refused."""
    import torch

    status = 1
    try:
        torch.ones(1, requires_grad=True).sum().backward()
        status = 0
    finally:
        os._exit(status)  # the exit handlers and the output buffers are the parent's


def begin_worker() -> None:
    """Set one thread per process: runs share the cores, and too many threads make small models many times slower."""
    import torch

    torch.set_num_threads(1)
    threading.Thread(target=_end_with_the_sweep, daemon=True).start()


def _end_with_the_sweep() -> None:
    """End this process when the sweep was killed, so that no run keeps writing into its folders."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)  # a training run writes its checkpoint
    time.sleep(GRACE_SECONDS)
    os._exit(1)
