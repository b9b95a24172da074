"""Which samples make up each optimizer step, as a pure function of the data's lengths, the seed and the epoch."""

import random
from collections.abc import Sequence

import numpy as np

from medtune.data.randomness import sample_rng
from medtune.errors import ConfigError

WINDOW = 50


class BatchPlan:
    """The steps of every epoch.

    A step is the set of samples of one optimizer update over all processes and accumulated micro-batches, so it
    depends on the global batch size alone: one process and many see the same steps.

    Samples of similar size share a step: the epoch's permutation is cut into windows of 50 steps, each window is sorted
    by (tiles, length) and cut into steps, and the steps are then put in random order. The last samples, too few for a
    whole step, are chosen at random and come last.

    With ``weights`` an epoch is as many draws with replacement as there are samples, each with a probability in
    proportion to its weight; nothing else changes. A sample that is drawn twice in an epoch looks the same both times.

    Args:
        lengths: tokens of each sample; samples of equal length and tiles are mixed at random.
        global_batch: samples per optimizer step.
        seed: the run's seed.
        shuffle: a new order each epoch; without it the samples come in the order of the source.
        bucket: sort by size inside the windows; has no effect without ``shuffle``.
        tiles: image tiles of each sample; equal for all if absent.
        indices: the source index of each sample, if some samples of the source are left out; 0, 1, 2, ... if absent.
        weights: draw the samples of an epoch in proportion to these, which must be positive.

    Raises:
        ConfigError: for a batch size below 1.
        ValueError: if the arrays differ in length, or weights are not positive or come without ``shuffle``.
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        global_batch: int,
        seed: int,
        shuffle: bool = True,
        bucket: bool = True,
        tiles: Sequence[int] | np.ndarray | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
        weights: Sequence[float] | np.ndarray | None = None,
    ) -> None:
        if global_batch < 1:
            raise ConfigError(f"The global batch is {global_batch}; it must be at least 1.")
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.tiles = np.zeros_like(self.lengths) if tiles is None else np.asarray(tiles, dtype=np.int64)
        self.indices = np.arange(len(self.lengths)) if indices is None else np.asarray(indices, dtype=np.int64)
        if not len(self.lengths) == len(self.tiles) == len(self.indices):
            raise ValueError("lengths, tiles and indices must be equally long")
        self._shares = None if weights is None else _shares(weights, len(self.lengths))
        if self._shares is not None and not shuffle:
            raise ValueError("weights draw a new order, which shuffle=False forbids")
        self.global_batch, self.seed, self.shuffle, self.bucket = global_batch, seed, shuffle, bucket

    def __len__(self) -> int:
        """Return the number of optimizer steps in an epoch."""
        return -(-len(self.lengths) // self.global_batch)

    def steps(self, epoch: int) -> list[list[int]]:
        """Return the source indices of each step of an epoch.

        Without weights every sample is in exactly one step. Only the last step may be short.

        Args:
            epoch: from 0.
        """
        order = list(range(len(self.lengths)))
        if not self.shuffle:
            return [self._sources(step) for step in _cut(order, self.global_batch)]
        rng = sample_rng(self.seed, epoch, 0, "batches")
        if self._shares is None:
            rng.shuffle(order)
        else:
            order = rng.choices(order, cum_weights=self._shares, k=len(order))
        whole = len(order) - len(order) % self.global_batch
        steps = self._bucketed(order[:whole], rng) if self.bucket else _cut(order[:whole], self.global_batch)
        return [self._sources(step) for step in steps + _cut(order[whole:], self.global_batch)]

    def _bucketed(self, order: list[int], rng: random.Random) -> list[list[int]]:
        steps: list[list[int]] = []
        for window in _cut(order, WINDOW * self.global_batch):
            at = np.asarray(window)
            ranked = at[np.lexsort((self.lengths[at], self.tiles[at]))]
            steps += _cut(ranked.tolist(), self.global_batch)
        rng.shuffle(steps)
        return steps

    def _sources(self, step: list[int]) -> list[int]:
        return [int(index) for index in self.indices[step]]


def split_step(
    indices: Sequence[int], world: int, rank: int, accumulation: int, batch_size: int
) -> list[list[tuple[int, bool]]]:
    """Return one process's share of a step.

    Args:
        indices: the step's samples; at most ``world * accumulation * batch_size``.
        world: number of processes.
        rank: number of this process.
        accumulation: micro-batches per process.
        batch_size: samples per micro-batch.

    Returns:
        ``accumulation`` micro-batches of ``batch_size`` pairs (index, real). A short step is filled up with repeats of
        its own samples, so that all processes run the same shapes. They are marked as not real; their labels are
        ignored.

    Raises:
        ConfigError: if the step is empty or does not fit.
    """
    total = world * accumulation * batch_size
    if not 0 < len(indices) <= total:
        raise ConfigError(
            f"A step of {len(indices)} samples does not fit {world} processes x {accumulation} micro-batches x "
            f"{batch_size} samples."
        )
    filled = [(indices[at % len(indices)], at < len(indices)) for at in range(total)]
    rounds = _cut(filled, world * batch_size)
    return [group[rank * batch_size : (rank + 1) * batch_size] for group in rounds]


def _shares(weights: Sequence[float] | np.ndarray, count: int) -> list[float]:
    """Running sum of the weights."""
    values = np.asarray(weights, dtype=np.float64)
    if len(values) != count or not (np.isfinite(values).all() and (values > 0).all()):
        raise ValueError("weights must be positive numbers, one for each sample")
    shares: list[float] = np.cumsum(values).tolist()
    return shares


def _cut(items: list, size: int) -> list[list]:
    return [items[start : start + size] for start in range(0, len(items), size)]
