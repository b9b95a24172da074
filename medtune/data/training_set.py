"""From a source to micro-batches on their way to the model, the same with any number of workers."""

import atexit
import random
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import active_children
from multiprocessing.util import Finalize
from typing import Any, Literal, Protocol

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from medtune.data.randomness import sample_rng
from medtune.data.sample import Sample
from medtune.data.source import SampleSource, place
from medtune.errors import DataError, MedtuneError

IGNORED = -100
OnError = Literal["raise", "skip"]
SampleTransform = Callable[[Sample, random.Random], Sample]
Key = tuple[int, int, bool]
"""Epoch, index in the source, and whether the sample counts."""


class ModelTransform(Protocol):
    """What a model family's transform offers to the data side."""

    max_seq_len: int

    def __call__(self, sample: Sample, images: list[Image.Image]) -> dict[str, Any]:
        """Return "tokens" and "labels" (equally long lists) and the image tensors of a sample."""
        ...

    def collate(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        """Return a batch of such items."""
        ...

    def token_count(self, sample: Sample) -> int:
        """Return the number of tokens of a sample without opening its images."""
        ...

    def tile_count(self, width: int, height: int) -> int:
        """Return the number of tiles of an image."""
        ...


class TrainingSet(Dataset):
    """Samples ready for the model, addressed by (epoch, index, real).

    Args:
        source: where the samples come from.
        sample_transform: the objective's own change to a sample; it gets the sample's generator.
        model_transform: the model family's transform.
        seed: the run's seed; with epoch and index it decides everything random about a sample.
        on_error: ``raise``, or ``skip``: a sample that cannot be used is replaced by the next one that can, with
            weight 0, and the batch says so under "skipped".
    """

    def __init__(
        self,
        source: SampleSource,
        sample_transform: SampleTransform,
        model_transform: ModelTransform,
        seed: int,
        on_error: OnError = "raise",
    ) -> None:
        self.source, self.seed, self.on_error = source, seed, on_error
        self.sample_transform, self.model_transform = sample_transform, model_transform

    def __len__(self) -> int:
        """Return the number of samples of the source."""
        return len(self.source)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        """Return the model transform's item, with "id" and "skipped": a list of (id, reason).

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
        sample = self.source[index]
        images = self.source.open_images(sample)
        shown = self.sample_transform(sample, sample_rng(self.seed, epoch, index))
        item = dict(self.model_transform(shown, images))
        if all(label == IGNORED for label in item["labels"]):
            raise DataError(
                f"{place(self.source, sample)}: nothing of the sample is supervised; it needs an assistant message "
                "with text."
            )
        if not real:
            item["labels"] = [IGNORED] * len(item["labels"])
        return {**item, "id": sample.id, "skipped": []}

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

    def __init__(self, dataset: TrainingSet, transform: ModelTransform) -> None:
        self.dataset, self.transform = dataset, transform

    def __getitem__(self, keys: Sequence[Key]) -> dict[str, Any] | _Failure:
        try:
            items = [self.dataset[key] for key in keys]
            skipped = [entry for item in items for entry in item.pop("skipped")]
            return {**self.transform.collate(items), "ids": [item["id"] for item in items], "skipped": skipped}
        except MedtuneError as error:
            return _Failure(type(error), str(error))


def epoch_loader(
    dataset: TrainingSet,
    steps: Sequence[Sequence[Sequence[tuple[int, bool]]]],
    epoch: int,
    transform: ModelTransform,
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
        transform: its ``collate`` makes the batches.
        num_workers: worker processes; 0 loads in this one.
        start_step: how many steps to leave out.
        pin_memory: lay the tensors in page-locked memory for a faster copy to a GPU.

    Yields:
        The collated micro-batches of one step, each with "ids" and "skipped".

    Raises:
        DataError: as :class:`TrainingSet`, without a worker's traceback.
    """
    rest = steps[start_step:]
    keys = [[(epoch, index, real) for index, real in micro] for step in rest for micro in step]
    loader = DataLoader(
        _MicroBatches(dataset, transform),
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
            yield [_checked(next(batches.iterator)) for _ in step]
    finally:
        batches.close()


class _Batches:
    """A loader's iterator, whose worker processes end with it.

    The workers ignore the signals by which they would be ended otherwise, so an iterator that is still open when the
    process exits (a traceback refers to it, say) must be closed before multiprocessing waits for its children.
    """

    def __init__(self, loader: DataLoader) -> None:
        others = set(active_children())
        self.iterator: Iterator[Any] = iter(loader)
        self._workers = set(active_children()) - others
        if self._workers:
            atexit.register(self.close)
            # A process that multiprocessing itself started runs no atexit; above 10, since its queues close at 10.
            self._at_exit = Finalize(None, self.close, exitpriority=100)

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
