"""The results of data workers in the order of the keys; the results are the same with any number of workers."""

import atexit
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import active_children
from multiprocessing.connection import wait
from multiprocessing.util import Finalize
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from medtune.errors import DataError, MedtuneError

LAST_BREATH = 5.0


@dataclass(frozen=True)
class Failure:
    """An error that a worker sends as a value, because torch would wrap an exception in a traceback.

    Attributes:
        kind: class of the error.
        message: its message.
    """

    kind: type[MedtuneError]
    message: str

    @staticmethod
    def of(error: MedtuneError) -> "Failure":
        """Convert an error to a value that a worker can send."""
        return Failure(type(error), str(error))


class InOrder:
    """An iterator over a data set whose worker processes end when it is closed.

    The workers ignore the signals that would normally end them. An iterator that is still open when the process exits
    (because a traceback refers to it, for example) must therefore be closed before multiprocessing waits for its
    children.

    The global random state is not touched.

    Args:
        dataset: returns a value, or a :class:`Failure`, for each key.
        keys: the keys, in the order in which their values are returned.
        num_workers: worker processes; 0 makes the values in this process.
        pin_memory: copy tensors to page-locked memory for a faster copy to a GPU.
    """

    def __init__(
        self, dataset: Dataset[Any], keys: Sequence[Any], num_workers: int = 0, pin_memory: bool = False
    ) -> None:
        loader = DataLoader(
            dataset,
            batch_size=None,
            sampler=keys,
            collate_fn=_unchanged,
            num_workers=num_workers,
            worker_init_fn=_quiet_worker,
            generator=torch.Generator(),  # otherwise torch draws the workers' seeds from the global state
            pin_memory=pin_memory,
        )
        others = set(active_children())
        handler = signal.getsignal(signal.SIGCHLD)
        self.iterator: Iterator[Any] = iter(loader)
        self._workers = set(active_children()) - others
        if signal.getsignal(signal.SIGCHLD) is not handler:
            # torch's signal handler raises an exception at any point of the main thread, also between two collectives,
            # and the other processes would then wait forever. Here a worker's death is noticed at the next value.
            signal.signal(signal.SIGCHLD, handler)
        if self._workers:
            atexit.register(self.close)
            # A process started by multiprocessing runs no atexit handlers. The priority is above 10, because the
            # queues of multiprocessing close at 10.
            self._at_exit = Finalize(None, self.close, exitpriority=100)

    def next(self) -> Any:
        """Return the next value.

        Raises:
            MedtuneError: the error that a worker sent in place of the value.
            DataError: if a worker process has died.
        """
        try:
            value = next(self.iterator)
        except (RuntimeError, OSError, EOFError) as error:  # the type depends on what the worker was doing
            # Its pipe may close a moment before the system reports that it has ended.
            ended = wait([worker.sentinel for worker in self._workers], timeout=LAST_BREATH)
            died = [worker for worker in self._workers if worker.sentinel in ended]
            if not died:
                raise
            died[0].join()
            raise DataError(
                f"A data worker process has died ({_death(died[0].exitcode)}). Give the same command again to go on "
                "from the last checkpoint, with a smaller num_workers if the machine's memory was full."
            ) from error
        if isinstance(value, Failure):
            raise value.kind(value.message)
        return value

    def close(self) -> None:
        """End the workers; a worker that does not end by itself is killed."""
        self.iterator = iter(())
        if not self._workers:
            return
        for worker in self._workers:
            if worker.is_alive():
                worker.kill()
        self._workers = set()
        self._at_exit.cancel()
        atexit.unregister(self.close)


def _death(exitcode: int | None) -> str:
    code = exitcode or 0
    return f"exit status {code}" if code >= 0 else f"ended by {signal.Signals(-code).name}"


def _unchanged(value: Any) -> Any:
    return value


def _quiet_worker(_: int) -> None:
    """Ignore signals in a worker: the main process finishes its step and saves, and needs its workers until then.

    A launcher signals the whole process group. Without this the workers would die first and the save would fail.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
