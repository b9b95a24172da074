"""F1, label accuracy, kappa and AUC of classified images: by scikit-learn, and for many bootstrap resamples at once.

Each statistic is implemented twice. scikit-learn computes the reported value. A function of the number of times that
each image was drawn computes the values for the interval. If every image is drawn once, both are equal (tested).
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from medtune.evaluation.metrics import drawn_weights, macro, proportion, quantile_ends

Array = NDArray[np.float64]


@dataclass(frozen=True)
class LabelTable:
    """The images of one set, as arrays.

    Attributes:
        kind: ``multi_class``, ``multi_label`` or ``ordinal``.
        gold: ``[n, classes]``, 1 where a class is right.
        read: ``[n, classes]``, 1 where an answer names the class; a row of zeros is an answer that names no class.
        unread: ``[n]``, True where nothing could be read from the answer; "no finding" is read and names no class.
        scores: ``[n, classes]``, larger means more likely; None if they are unknown.
    """

    kind: str
    gold: Array
    read: Array
    scores: Array | None = None
    unread: NDArray[np.bool_] | None = None

    @classmethod
    def of(
        cls,
        kind: str,
        classes: int,
        gold: Sequence[Sequence[int]],
        read: Sequence[Sequence[int]],
        scores: Sequence[Sequence[float]] | None = None,
        unread: Sequence[bool] | None = None,
    ) -> "LabelTable":
        """Make the arrays from class indices; without ``unread`` every answer was read."""
        table = None if scores is None else np.asarray(scores, dtype=np.float64).reshape(len(gold), classes)
        unknown = np.zeros(len(gold), dtype=bool) if unread is None else np.asarray(unread, dtype=bool)
        return cls(kind, _indicators(gold, classes), _indicators(read, classes), table, unknown)

    @property
    def right_labels(self) -> tuple[Array, Array]:
        """Share of each image's labels whose presence or absence is right, ``[n]``; and the strict one.

        An unread answer names no class, and so it is right in the first about every absent class. In the strict share
        it is wrong about every class.
        """
        right = (self.gold == self.read).mean(1)
        return right, right if self.unread is None else np.where(self.unread, 0.0, right)

    def answered_by(self, indices: Sequence[int]) -> "LabelTable":
        """Return the table of a model that gives the same answer to every image."""
        read = _indicators([indices] * len(self.gold), self.gold.shape[1])
        return replace(self, read=read, scores=None, unread=None)

    @property
    def grades(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Right class and read class of each image; if no class was read, the class farthest from the right one."""
        right = self.gold.argmax(1)
        last = self.gold.shape[1] - 1
        farthest = np.where(2 * right >= last, 0, last)
        return right, np.where(self.read.any(1), self.read.argmax(1), farthest)


def points(table: LabelTable) -> dict[str, float | None]:
    """Return the statistics that apply to a set (scikit-learn): name to value, None if the value is undefined."""
    statistics = {"f1_macro": _f1(table)}
    if table.kind == "multi_label":
        right, strict = table.right_labels
        statistics["label_accuracy"], statistics["label_accuracy_strict"] = float(right.mean()), float(strict.mean())
    if table.kind == "ordinal":
        statistics["quadratic_kappa"] = _kappa(table)
    if table.scores is not None:
        statistics["auc_macro"] = _auc(table)
    return statistics


def intervals(
    tables: Mapping[str, LabelTable],
    clusters: Sequence[object],
    *,
    resamples: int = 1000,
    seed: int = 0,
    only: Sequence[str] = (),
) -> dict[str, tuple[float, float]]:
    """Return 95% percentile intervals of the statistics' means over sets, by a bootstrap over clusters (images).

    Args:
        tables: Set to its images. A set without images in a resample is left out of that resample.
        clusters: The image of each row, set after set.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resampling.
        only: Names of the statistics; empty takes those of the first set.

    Returns:
        Name to lower and upper end; empty for fewer than two clusters. If the value is 0 in all resamples, or 1 in all,
        the interval would have no width. Then it is Wilson's interval with the number of clusters as trials.
    """
    names, cluster = np.unique(np.asarray([repr(key) for key in clusters]), return_inverse=True)
    if len(names) < 2:
        return {}
    in_order = list(tables.values())
    functions = [
        {name: statistic for name, statistic in _resampled(table).items() if not only or name in only}
        for table in in_order
    ]
    ends = np.cumsum([0, *(len(table.gold) for table in in_order)])
    statistics: dict[str, list[Array]] = {name: [] for name in functions[0]}
    for weights in drawn_weights(len(names), resamples, seed):
        counts = weights[:, cluster]
        for name, drawn in statistics.items():
            values = [by_name[name](counts[:, ends[at] : ends[at + 1]]) for at, by_name in enumerate(functions)]
            drawn.append(_mean_of_known(np.stack(values, -1)))
    ends_by_name = {name: percentile_ends(np.concatenate(drawn), len(names)) for name, drawn in statistics.items()}
    return {name: pair for name, pair in ends_by_name.items() if pair is not None}


def f1_difference(
    first: Mapping[str, LabelTable],
    second: Mapping[str, LabelTable],
    clusters: Sequence[object],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float | None, tuple[float, float] | None]:
    """Return the difference in macro-F1 (mean over sets), second model minus first, with its bootstrap interval.

    Args:
        first: Set to the first model's images.
        second: The same images, in the same order, with the answers of the second model.
        clusters: The image of each row, set after set.
        resamples: Number of bootstrap resamples; both models use the same ones.
        seed: Seed of the resampling.
    """
    names, cluster = np.unique(np.asarray([repr(key) for key in clusters]), return_inverse=True)
    sides = (list(first.values()), list(second.values()))
    whole = np.ones((1, len(clusters)))
    before, after = (float(_f1_over_sets(side, whole)[0]) for side in sides)
    value = None if np.isnan(after - before) else after - before
    if value is None or len(names) < 2:
        return value, None
    drawn = []
    for weights in drawn_weights(len(names), resamples, seed):
        counts = weights[:, cluster]
        drawn.append(_f1_over_sets(sides[1], counts) - _f1_over_sets(sides[0], counts))
    return value, quantile_ends(np.concatenate(drawn))


def _f1_over_sets(tables: Sequence[LabelTable], counts: Array) -> Array:
    ends = np.cumsum([0, *(len(table.gold) for table in tables)])
    values = [_f1_drawn(table, counts[:, ends[at] : ends[at + 1]]) for at, table in enumerate(tables)]
    return _mean_of_known(np.stack(values, -1))


def percentile_ends(drawn: Array, clusters: int) -> tuple[float, float] | None:
    """Return the 95% percentile interval of resampled values.

    It is Wilson's interval if all values are 0 or all are 1, and None if all are NaN or equal to another value.
    """
    known = drawn[~np.isnan(drawn)]
    if not len(known):
        return None
    if known.min() == known.max() and known[0] in (0.0, 1.0):
        return proportion([bool(known[0])] * clusters, "").interval
    return quantile_ends(known)


def _resampled(table: LabelTable) -> dict[str, Callable[[Array], Array]]:
    """Return functions by name of the statistic: from counts ``[resamples, n]`` of each image to ``[resamples]``."""
    functions: dict[str, Callable[[Array], Array]] = {"f1_macro": lambda counts: _f1_drawn(table, counts)}
    if table.kind == "multi_label":
        right, strict = table.right_labels
        functions["label_accuracy"] = lambda counts: _ratio(counts @ right, counts.sum(1))
        functions["label_accuracy_strict"] = lambda counts: _ratio(counts @ strict, counts.sum(1))
    if table.kind == "ordinal":
        functions["quadratic_kappa"] = lambda counts: _kappa_drawn(table, counts)
    if table.scores is not None:
        functions["auc_macro"] = lambda counts: _auc_drawn(table, counts)
    return functions


def _f1(table: LabelTable) -> float | None:
    from sklearn.metrics import f1_score

    value = f1_score(table.gold, table.read, average="macro", zero_division=np.nan) if len(table.gold) else np.nan
    return None if np.isnan(value) else float(value)


def _f1_drawn(table: LabelTable, counts: Array) -> Array:
    hits = counts @ (table.gold * table.read)
    return _mean_of_known(_ratio(2 * hits, counts @ table.gold + counts @ table.read))


def _kappa(table: LabelTable) -> float | None:
    from sklearn.metrics import cohen_kappa_score

    right, read = table.grades
    with (
        warnings.catch_warnings()
    ):  # scikit-learn warns if kappa is undefined: right grades and answers are all one grade
        warnings.simplefilter("ignore")
        value = cohen_kappa_score(right, read, weights="quadratic", labels=list(range(table.gold.shape[1])))
    return None if np.isnan(value) else float(value)


def _kappa_drawn(table: LabelTable, counts: Array) -> Array:
    size = table.gold.shape[1]
    right, read = table.grades
    cells = np.zeros((len(right), size * size))
    cells[np.arange(len(right)), right * size + read] = 1.0
    observed = (counts @ cells).reshape(-1, size, size)
    expected = observed.sum(2)[:, :, None] * observed.sum(1)[:, None, :]
    weights = np.subtract.outer(np.arange(size), np.arange(size)) ** 2.0
    total = observed.sum((1, 2))
    return 1.0 - _ratio((weights * observed).sum((1, 2)) * total, (weights * expected).sum((1, 2)))


def _auc(table: LabelTable) -> float | None:
    from sklearn.metrics import roc_auc_score

    assert table.scores is not None
    scorable = [at for at in range(table.gold.shape[1]) if 0 < table.gold[:, at].sum() < len(table.gold)]
    values = [roc_auc_score(table.gold[:, at], table.scores[:, at]) for at in scorable]
    return float(np.mean(values)) if values else None


def _auc_drawn(table: LabelTable, counts: Array) -> Array:
    """AUC as the share of ordered pairs (image of the class, other image); a tie counts one half (Mann-Whitney)."""
    assert table.scores is not None
    areas = [
        drawn_area(table.scores[:, at], counts * table.gold[:, at], counts * (1 - table.gold[:, at]))
        for at in range(table.gold.shape[1])
    ]
    return _mean_of_known(np.stack(areas, -1))


def drawn_area(scores: Array, positive: Array, negative: Array) -> Array:
    """Return the area under the ROC curve in each resample.

    Args:
        scores: ``[n]``, larger means more likely positive.
        positive: How often each row was drawn as a positive, ``[resamples, n]``.
        negative: How often each row was drawn as a negative, ``[resamples, n]``.

    Returns:
        ``[resamples]``, NaN if a resample has no positive or no negative.
    """
    order = np.argsort(scores, kind="stable")
    ranked = scores[order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    above = np.add.reduceat(positive[:, order], starts, axis=1)
    beside = np.add.reduceat(negative[:, order], starts, axis=1)
    below = np.cumsum(beside, axis=1) - beside / 2
    return _ratio((above * below).sum(1), above.sum(1) * beside.sum(1))


def _ratio(top: Array, bottom: Array) -> Array:
    """Divide; the result is NaN if the denominator is 0."""
    return np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=bottom > 0)


def _mean_of_known(values: Array) -> Array:
    """Return the mean over the last axis without NaN; NaN if all are NaN. ``[..., c]`` to ``[...]``."""
    return np.where(np.isnan(values).all(-1), np.nan, macro(values))


def _indicators(rows: Sequence[Sequence[int]], classes: int) -> Array:
    table = np.zeros((len(rows), classes))
    for at, indices in enumerate(rows):
        table[at, list(indices)] = 1.0
    return table
