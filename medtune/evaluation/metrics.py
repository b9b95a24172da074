"""Metrics on scored answers, computed by scikit-learn and scipy; the bootstrap over images is our own code."""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.metrics import recall_score

from medtune.evaluation.result import Metric

Reduce = Callable[[NDArray[np.float64]], NDArray[np.float64]]
UNREAD = "\x00unread"
"""Represents an answer that could not be read; no gold value can be equal to it."""


def proportion(
    correct: Sequence[bool], definition: str, *, unit: str = "fraction", higher_is_better: bool | None = True
) -> Metric:
    """Return the share of true entries with Wilson's 95% interval (scipy); undefined without entries."""
    n, k = len(correct), int(sum(bool(value) for value in correct))
    if n == 0:
        return Metric(None, unit, higher_is_better, 0, None, definition)
    interval = binomtest(k, n).proportion_ci(confidence_level=0.95, method="wilson")
    return Metric(k / n, unit, higher_is_better, n, (float(interval.low), float(interval.high)), definition)


def balanced_accuracy(gold: Sequence[str], predicted: Sequence[str | None]) -> float:
    """Return the mean recall over the gold values (scikit-learn). Unread answers are misses. NaN without entries."""
    if not gold:
        return math.nan
    answers = [UNREAD if value is None else value for value in predicted]
    return float(recall_score(list(gold), answers, labels=sorted(set(gold)), average="macro", zero_division=0.0))


def bootstrap_interval(
    values: Sequence[float],
    cells: Sequence[object],
    clusters: Sequence[object],
    reduce: Reduce,
    *,
    resamples: int = 1000,
    seed: int = 0,
    binary: bool = True,
) -> tuple[float, float] | None:
    """Return the 95% percentile interval of a statistic of cell means, by a bootstrap over whole clusters (images).

    Answers about one image are correlated, so images are resampled, not questions. The mean of a cell without answers
    in a resample is NaN; ``reduce`` must leave it out (``np.nanmean``).

    Args:
        values: One value for each answer, e.g. 1.0 for a right one.
        cells: The group of each answer, e.g. its attribute.
        clusters: The image of each answer.
        reduce: Maps cell means ``[resamples, c]`` to the statistic ``[resamples]``; cells are in sorted order.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resampling.
        binary: Whether the values are 0 and 1. If they are all equal, all resamples are equal and the interval would
            have no width. Then the result is Wilson's interval with the number of clusters as the number of trials.

    Returns:
        Lower and upper end, or None for fewer than two clusters.
    """
    cell_names, cell = np.unique(np.asarray([repr(key) for key in cells]), return_inverse=True)
    cluster_names, cluster = np.unique(np.asarray([repr(key) for key in clusters]), return_inverse=True)
    k, c = len(cluster_names), len(cell_names)
    if k < 2:
        return None
    if binary and len({float(value) for value in values}) == 1:
        return proportion([bool(values[0])] * k, "").interval
    flat = cluster * c + cell
    total = np.bincount(flat, weights=np.asarray(values, dtype=np.float64), minlength=k * c).reshape(k, c)
    count = np.bincount(flat, minlength=k * c).reshape(k, c).astype(np.float64)
    statistics = []
    for weights in drawn_weights(k, resamples, seed):
        with np.errstate(invalid="ignore", divide="ignore"):
            means = (weights @ total) / (weights @ count)
        statistics.append(reduce(means))
    low, high = np.nanquantile(np.concatenate(statistics), [0.025, 0.975])
    return float(low), float(high)


def drawn_weights(clusters: int, resamples: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """Yield how often each cluster is drawn, in blocks ``[up to 100, clusters]`` to limit the memory.

    Args:
        clusters: Number of clusters; each resample draws the same number, with replacement.
        resamples: Total number of bootstrap resamples.
        seed: Seed of the resampling.
    """
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, 100):
        shares = np.full(clusters, 1.0 / clusters)
        yield rng.multinomial(clusters, shares, size=min(100, resamples - start)).astype(np.float64)


def macro(means: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean over cells, without cells that are NaN; ``[..., c]`` to ``[...]``."""
    defined = ~np.isnan(means)
    return np.asarray(np.where(defined, means, 0.0).sum(-1) / np.maximum(defined.sum(-1), 1))


def nested_macro(groups: Sequence[object]) -> Reduce:
    """Return a reduction for cells in two levels: mean over the cells of each group, then over the groups.

    Args:
        groups: Group of each cell, in the sorted order of the cells.
    """
    _, index = np.unique(np.asarray([repr(group) for group in groups]), return_inverse=True)

    def reduce(means: NDArray[np.float64]) -> NDArray[np.float64]:
        per_group = [macro(means[..., index == group]) for group in range(index.max() + 1)]
        defined = [(~np.isnan(means[..., index == group])).any(-1) for group in range(index.max() + 1)]
        stacked = np.where(np.stack(defined, -1), np.stack(per_group, -1), np.nan)
        return macro(stacked)

    return reduce
