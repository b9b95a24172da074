"""From a source to micro-batches on their way to the model, the same with any number of workers."""

import atexit
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import active_children
from multiprocessing.connection import wait
from multiprocessing.util import Finalize
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader, Dataset

from medtune.data.items import Items, ModelTransform
from medtune.data.randomness import sample_rng
from medtune.data.source import SampleSource
from medtune.errors import DataError, MedtuneError

LAST_BREATH = 5.0
OnError = Literal["raise", "skip"]
Key = tuple[int, int, bool]
"""Epoch, index in the source, and whether the sample counts."""


class TrainingSet(Dataset):
    """Samples ready for the model, addressed by (epoch, index, real).

    Args:
        source: where the samples come from.
        items: how the method makes an item of a sample; it gets the sample's generator.
        transform: the model family's transform.
        seed: the run's seed; with epoch and index it decides everything random about a sample.
        on_error: ``raise``, or ``skip``: a sample that cannot be used is replaced by the next one that can, with
            weight 0, and the batch says so under "skipped".
    """

    def __init__(
        self, source: SampleSource, items: Items, transform: ModelTransform, seed: int, on_error: OnError = "raise"
    ) -> None:
        self.source, self.items, self.transform = source, items, transform
        self.seed, self.on_error = seed, on_error

    def __len__(self) -> int:
        """Return the number of samples of the source."""
        return len(self.source)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        """Return the item, with "skipped": a list of (id, reason).

        Raises:
            DataError: if the sample cannot be used and ``on_error`` is ``raise``, or if no sample can.
        """
        epoch, index, real = key
        try:
            return self._item(epoch, index, real)
        except DataError as error:
            if self.on_error == "raise":
                raise
            return self._substitute(epoch, index, (self._id(index), str(error)))

    def _item(self, epoch: int, index: int, real: bool) -> dict[str, Any]:
        item = self.items(self.source, index, sample_rng(self.seed, epoch, index), self.transform)
        return {**(item if real else self.items.blank(item)), "skipped": []}

    def _substitute(self, epoch: int, index: int, skipped: tuple[str, str]) -> dict[str, Any]:
        """Stand in for a sample with the next usable one, so that every process still runs the same shapes."""
        for step in range(1, len(self.source)):
            try:
                item = self._item(epoch, (index + step) % len(self.source), real=False)
            except DataError:
                continue
            return {**item, "skipped": [skipped]}
        raise DataError(f"{self.source.name}: not one sample can be used; the first problem: {skipped[1]}")

    def _id(self, index: int) -> str:
        try:
            return self.source[index].id
        except DataError:
            return f"row {index + 1}"


@dataclass(frozen=True)
class _Failure:
    """An error on its way from a worker: torch would wrap it in a traceback."""

    kind: type[MedtuneError]
    message: str


class _MicroBatches(Dataset):
    """Collated micro-batches, addressed by their lists of keys."""

    def __init__(self, dataset: TrainingSet) -> None:
        self.dataset = dataset

    def __getitem__(self, keys: Sequence[Key]) -> dict[str, Any] | _Failure:
        try:
            items = [self.dataset[key] for key in keys]
            skipped = [entry for item in items for entry in item.pop("skipped")]
            batch = self.dataset.items.collate(items, self.dataset.transform)
            return {**batch, "ids": [item["id"] for item in items], "skipped": skipped}
        except MedtuneError as error:
            return _Failure(type(error), str(error))


def epoch_loader(
    dataset: TrainingSet,
    steps: Sequence[Sequence[Sequence[tuple[int, bool]]]],
    epoch: int,
    num_workers: int = 0,
    start_step: int = 0,
    pin_memory: bool = False,
) -> Iterator[list[dict[str, Any]]]:
    """Yield the micro-batches of each optimizer step of an epoch, in order.

    The sequence is the same with and without workers, and beginning at ``start_step`` gives the same steps as
    arriving there. The global random state is not touched.

    Args:
        dataset: the samples.
        steps: one process's steps, each a list of micro-batches of (index, real), as
            :func:`medtune.data.batching.split_step` gives them.
        epoch: the epoch they belong to.
        num_workers: worker processes; 0 loads in this one.
        start_step: how many steps to leave out.
        pin_memory: lay the tensors in page-locked memory for a faster copy to a GPU.

    Yields:
        The collated micro-batches of one step, each with "ids" and "skipped".

    Raises:
        DataError: as :class:`TrainingSet`, without a worker's traceback; also if a worker process dies.
    """
    rest = steps[start_step:]
    keys = [[(epoch, index, real) for index, real in micro] for step in rest for micro in step]
    loader = DataLoader(
        _MicroBatches(dataset),
        batch_size=None,
        sampler=keys,
        collate_fn=_unchanged,
        num_workers=num_workers,
        worker_init_fn=_quiet_worker,
        generator=torch.Generator(),  # else torch draws the workers' seeds from the global state
        pin_memory=pin_memory,
    )
    batches = _Batches(loader)
    try:
        for step in rest:
            yield [_checked(batches.next()) for _ in step]
    finally:
        batches.close()


class _Batches:
    """A loader's iterator, whose worker processes end with it.

    The workers ignore the signals by which they would be ended otherwise, so an iterator that is still open when the
    process exits (a traceback refers to it, say) must be closed before multiprocessing waits for its children.
    """

    def __init__(self, loader: DataLoader) -> None:
        others = set(active_children())
        handler = signal.getsignal(signal.SIGCHLD)
        self.iterator: Iterator[Any] = iter(loader)
        self._workers = set(active_children()) - others
        if signal.getsignal(signal.SIGCHLD) is not handler:
            # torch's handler raises wherever the main thread happens to be, between two collectives too, so that other
            # processes would wait for this one. A worker's death is noticed when the next batch is asked for.
            signal.signal(signal.SIGCHLD, handler)
        if self._workers:
            atexit.register(self.close)
            # A process that multiprocessing itself started runs no atexit; above 10, since its queues close at 10.
            self._at_exit = Finalize(None, self.close, exitpriority=100)

    def next(self) -> Any:
        """Return the next micro-batch.

        Raises:
            DataError: If a worker process has died.
        """
        try:
            return next(self.iterator)
        except (RuntimeError, OSError, EOFError) as error:  # how depends on what the worker was about
            # Its pipe may close a moment before the system tells that it has ended.
            ended = wait([worker.sentinel for worker in self._workers], timeout=LAST_BREATH)
            died = [worker for worker in self._workers if worker.sentinel in ended]
            if not died:
                raise
            died[0].join()
            raise DataError(
                f"A data worker process has died ({_death(died[0].exitcode)}). Give the same command again to go on "
                "from the last checkpoint, with a smaller num_workers if the machine's memory was full."
            ) from error

    def close(self) -> None:
        """End the workers; one that does not end by itself is killed."""
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


def _checked(batch: dict[str, Any] | _Failure) -> dict[str, Any]:
    if isinstance(batch, _Failure):
        raise batch.kind(batch.message)
    return batch


def _unchanged(batch: Any) -> Any:
    return batch


def _quiet_worker(_: int) -> None:
    """Leave signals to the main process, which finishes its step and saves while its workers still serve it.

    A launcher signals the whole process group. Without this the workers would die first and the save would fail.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
