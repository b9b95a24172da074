"""Metrics on scored answers, computed by scikit-learn and scipy; the bootstrap over images is our own code.

Both libraries are imported in the functions that call them, here and in every other module that a recipe loads when it
starts: they would take a sixth of its start, and only scoring needs them.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from medtune.evaluation.result import Metric

_EQUAL = 1e-12  # the largest relative difference of equal values that were summed in another order
Reduce = Callable[[NDArray[np.float64]], NDArray[np.float64]]
RARE_IMAGES = 15
"""A class with fewer images has no reliable bootstrap interval. In simulated sets of 60 to 400 images, 95% intervals of
macro-F1 covered the true value in 42% to 83% of cases with 2 images of a class, and in 92% or more with 15."""
BOOTSTRAP = "interval by a bootstrap over images"
UNREAD = "\x00unread"
"""Represents an answer that could not be read; no gold value can be equal to it."""


def proportion(
    correct: Sequence[bool], definition: str, *, unit: str = "fraction", higher_is_better: bool | None = True
) -> Metric:
    """Return the share of true entries with Wilson's 95% interval (scipy); undefined without entries."""
    from scipy.stats import binomtest

    n, k = len(correct), int(sum(bool(value) for value in correct))
    if n == 0:
        return Metric(None, unit, higher_is_better, 0, None, definition)
    interval = binomtest(k, n).proportion_ci(confidence_level=0.95, method="wilson")
    return Metric(k / n, unit, higher_is_better, n, (float(interval.low), float(interval.high)), definition)


def share(
    entries: Sequence[bool],
    clusters: Sequence[object],
    definition: str,
    *,
    resamples: int = 1000,
    seed: int = 0,
    higher_is_better: bool | None = True,
) -> Metric:
    """Return the share of true entries with a 95% interval that allows for several entries on one image.

    Wilson's interval takes entries as independent. If every cluster has one entry, they are, and the interval is
    Wilson's. Otherwise it is that of a bootstrap over clusters (:func:`bootstrap_interval`).

    Args:
        entries: One value for each answer.
        clusters: The image (or images) of each answer.
        definition: What the share is of, without the kind of the interval, which is added.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resampling.
        higher_is_better: As in :class:`~medtune.evaluation.result.Metric`.
    """
    if len({repr(cluster) for cluster in clusters}) == len(entries):
        return proportion(entries, f"{definition}; Wilson interval", higher_is_better=higher_is_better)
    values = [float(bool(entry)) for entry in entries]
    ends = bootstrap_interval(values, [""] * len(values), clusters, macro, resamples=resamples, seed=seed)
    mean = sum(values) / len(values)
    return Metric(mean, "fraction", higher_is_better, len(values), ends, f"{definition}; {BOOTSTRAP}")


def balanced_accuracy(gold: Sequence[str], predicted: Sequence[str | None]) -> float:
    """Return the mean recall over the gold values (scikit-learn). Unread answers are misses. NaN without entries."""
    from sklearn.metrics import recall_score

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
        Lower and upper end. None for fewer than two clusters, and if all resamples are equal although the values are
        not 0 and 1: an interval without width would claim certainty.
    """
    k = len({repr(key) for key in clusters})
    if k < 2:
        return None
    if binary and len({float(value) for value in values}) == 1:
        return proportion([bool(values[0])] * k, "").interval
    return quantile_ends(drawn_statistic(values, cells, clusters, reduce, resamples, seed))


def drawn_statistic(
    values: Sequence[float] | NDArray[np.float64],
    cells: Sequence[object],
    clusters: Sequence[object],
    reduce: Reduce,
    resamples: int,
    seed: int,
) -> NDArray[np.float64]:
    """Return a statistic of cell means in each bootstrap resample of the clusters, ``[resamples]``.

    Arguments as for :func:`bootstrap_interval`. NaN for fewer than two clusters.
    """
    cell_names, cell = np.unique(np.asarray([repr(key) for key in cells]), return_inverse=True)
    cluster_names, cluster = np.unique(np.asarray([repr(key) for key in clusters]), return_inverse=True)
    k, c = len(cluster_names), len(cell_names)
    if k < 2:
        return np.full(resamples, np.nan)
    flat = cluster * c + cell
    total = np.bincount(flat, weights=np.asarray(values, dtype=np.float64), minlength=k * c).reshape(k, c)
    count = np.bincount(flat, minlength=k * c).reshape(k, c).astype(np.float64)
    statistics = []
    for weights in drawn_weights(k, resamples, seed):
        with np.errstate(invalid="ignore", divide="ignore"):
            means = (weights @ total) / (weights @ count)
        statistics.append(reduce(means))
    return np.concatenate(statistics)


def quantile_ends(drawn: NDArray[np.float64]) -> tuple[float, float] | None:
    """Return the 2.5% and 97.5% quantiles of resampled values; None if none is known, or if all are equal.

    Args:
        drawn: ``[resamples]``; NaN where a resample has no value.
    """
    known = drawn[~np.isnan(drawn)]
    if not len(known) or np.ptp(known) <= _EQUAL * max(1.0, float(np.abs(known).max())):
        return None
    low, high = np.quantile(known, [0.025, 0.975])
    return float(low), float(high)


def rare_classes(images: Mapping[str, int]) -> str:
    """Return the sentence that warns of classes with few images; empty if every class has enough.

    Args:
        images: Class to its number of images; classes that do not count are left out.
    """
    rare = sorted(((count, name) for name, count in images.items() if count < RARE_IMAGES))
    if not rare:
        return ""
    listed = ", ".join(f"{name} (n={count})" for count, name in rare[:3])
    more = f" and {len(rare) - 3} more" if len(rare) > 3 else ""
    return f"rests on few images of {listed}{more}; from fewer than {RARE_IMAGES} no interval is reliable"


def few_differences(value: float, clusters: int) -> tuple[float, float]:
    """Return a 95% interval of the mean of paired differences that are all equal.

    Each difference of two answers is -1, 0 or 1. If all clusters have the same difference, the bootstrap has no width.
    The upper end ``u`` of Wilson's interval for 0 of ``clusters`` bounds the share of clusters with another
    difference, so the mean is at most ``u`` away from a difference of 0, and at most ``2 u`` from one of -1 or 1.

    Args:
        value: The common difference.
        clusters: Number of images.
    """
    interval = proportion([False] * clusters, "").interval
    other = 1.0 if interval is None else interval[1]
    return max(-1.0, value - other * (1 + value)), min(1.0, value + other * (1 - value))


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
