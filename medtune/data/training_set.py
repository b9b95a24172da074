"""The data loading path from a source to micro-batches; the result is the same with any number of workers."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from torch.utils.data import Dataset

from medtune.data.items import BatchItems, ModelTransform
from medtune.data.randomness import sample_rng
from medtune.data.source import SampleSource
from medtune.data.workers import Failure, InOrder
from medtune.errors import DataError, MedtuneError

OnError = Literal["raise", "skip"]
Key = tuple[int, int, bool]
"""Epoch, index in the source, and whether the sample counts."""


class TrainingSet(Dataset):
    """Samples ready for the model, addressed by (epoch, index, real).

    Args:
        source: the samples.
        items: makes an item of a sample for the method; it gets the sample's generator.
        transform: the model family's transform.
        seed: the run's seed; together with epoch and index it decides everything random about a sample.
        on_error: ``raise``, or ``skip``: a sample that cannot be used is replaced by the next usable one, with weight
            0, and the batch lists it under "skipped".
    """

    def __init__(
        self,
        source: SampleSource,
        items: BatchItems,
        transform: ModelTransform,
        seed: int,
        on_error: OnError = "raise",
    ) -> None:
        self.source, self.items, self.transform = source, items, transform
        self.seed, self.on_error = seed, on_error

    def with_items(self, items: BatchItems) -> "TrainingSet":
        """Return a training set of the same samples with other items."""
        return TrainingSet(self.source, items, self.transform, self.seed, self.on_error)

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
        """Replace a sample by the next usable one, so that every process still runs the same shapes."""
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


class _MicroBatches(Dataset):
    """Collated micro-batches, addressed by their lists of keys."""

    def __init__(self, dataset: TrainingSet) -> None:
        self.dataset = dataset

    def __getitem__(self, keys: Sequence[Key]) -> dict[str, Any] | Failure:
        try:
            items = [self.dataset[key] for key in keys]
            skipped = [entry for item in items for entry in item.pop("skipped")]
            batch = self.dataset.items.collate(items, self.dataset.transform)
            return {**batch, "ids": [item["id"] for item in items], "skipped": skipped}
        except MedtuneError as error:
            return Failure.of(error)


def epoch_loader(
    dataset: TrainingSet,
    steps: Sequence[Sequence[Sequence[tuple[int, bool]]]],
    epoch: int,
    num_workers: int = 0,
    start_step: int = 0,
    pin_memory: bool = False,
) -> Iterator[list[dict[str, Any]]]:
    """Yield the micro-batches of each optimizer step of an epoch, in order.

    The sequence is the same with and without workers. A run that begins at ``start_step`` gets the same steps as a run
    that has reached it. The global random state is not touched.

    Args:
        dataset: the samples.
        steps: one process's steps, each a list of micro-batches of (index, real), as
            :func:`medtune.data.batching.split_step` gives them.
        epoch: the epoch they belong to.
        num_workers: worker processes; 0 loads in this process.
        start_step: number of steps to skip.
        pin_memory: copy the tensors to page-locked memory for a faster copy to a GPU.

    Yields:
        The collated micro-batches of one step, each with "ids" and "skipped".

    Raises:
        DataError: as :class:`TrainingSet`, without a worker's traceback; also if a worker process dies.
    """
    rest = steps[start_step:]
    keys = [[(epoch, index, real) for index, real in micro] for step in rest for micro in step]
    batches = InOrder(_MicroBatches(dataset), keys, num_workers, pin_memory)
    try:
        for step in rest:
            yield [batches.next() for _ in step]
    finally:
        batches.close()
