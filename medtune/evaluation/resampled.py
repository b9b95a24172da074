"""F1, label accuracy, kappa and AUC of classified images: by scikit-learn, and for many bootstrap draws at once.

Each statistic stands here twice: as scikit-learn computes it, for the value that is reported, and as a function of how
often each image was drawn, for its interval. With every image drawn once, both are equal (tests hold them to it).
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import cohen_kappa_score, f1_score, roc_auc_score

from medtune.evaluation.metrics import drawn_weights, macro, proportion

Array = NDArray[np.float64]


@dataclass(frozen=True)
class LabelTable:
    """The images of one set, as arrays.

    Attributes:
        kind: ``multi_class``, ``multi_label`` or ``ordinal``.
        gold: ``[n, classes]``, 1 where a class is right.
        read: ``[n, classes]``, 1 where an answer names it; a row of zeros is an answer that names none.
        scores: ``[n, classes]``, the larger the likelier; None where they are not known.
    """

    kind: str
    gold: Array
    read: Array
    scores: Array | None = None

    @classmethod
    def of(
        cls,
        kind: str,
        classes: int,
        gold: Sequence[Sequence[int]],
        read: Sequence[Sequence[int]],
        scores: Sequence[Sequence[float]] | None = None,
    ) -> "LabelTable":
        """Make the arrays of class indices."""
        table = None if scores is None else np.asarray(scores, dtype=np.float64).reshape(len(gold), classes)
        return cls(kind, _indicators(gold, classes), _indicators(read, classes), table)

    def answered_by(self, indices: Sequence[int]) -> "LabelTable":
        """Return the table of a model that gives one answer to every image."""
        return replace(self, read=_indicators([indices] * len(self.gold), self.gold.shape[1]), scores=None)

    @property
    def grades(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Right and read class of each image; where none is read, the class farthest from the right one."""
        right = self.gold.argmax(1)
        last = self.gold.shape[1] - 1
        farthest = np.where(2 * right >= last, 0, last)
        return right, np.where(self.read.any(1), self.read.argmax(1), farthest)


def points(table: LabelTable) -> dict[str, float | None]:
    """Return the statistics that make sense for a set (scikit-learn): name to value, None where it is undefined."""
    found = {"f1_macro": _f1(table)}
    if table.kind == "multi_label":
        found["label_accuracy"] = float(np.mean(table.gold == table.read))
    if table.kind == "ordinal":
        found["quadratic_kappa"] = _kappa(table)
    if table.scores is not None:
        found["auc_macro"] = _auc(table)
    return found


def intervals(
    tables: Mapping[str, LabelTable],
    clusters: Sequence[object],
    *,
    resamples: int = 1000,
    seed: int = 0,
    only: Sequence[str] = (),
) -> dict[str, tuple[float, float]]:
    """95% percentile intervals of the statistics' means over sets, drawing whole clusters (images) with replacement.

    Args:
        tables: Set to its images. A set that a draw does not hold is left out of that draw.
        clusters: The image of each row, set after set.
        resamples: Number of draws.
        seed: Seed of the draws.
        only: Names of the statistics; empty takes those of the first set.

    Returns:
        Name to lower and upper end; empty for fewer than two clusters. Where every draw is alike, at 0 or at 1, the
        bootstrap would claim certainty: Wilson's interval for as many trials as there are clusters is taken then.
    """
    names, cluster = np.unique(np.asarray([repr(key) for key in clusters]), return_inverse=True)
    if len(names) < 2:
        return {}
    held = list(tables.values())
    functions = [
        {name: statistic for name, statistic in _resampled(table).items() if not only or name in only} for table in held
    ]
    ends = np.cumsum([0, *(len(table.gold) for table in held)])
    statistics: dict[str, list[Array]] = {name: [] for name in functions[0]}
    for weights in drawn_weights(len(names), resamples, seed):
        counts = weights[:, cluster]
        for name, drawn in statistics.items():
            values = [by_name[name](counts[:, ends[at] : ends[at + 1]]) for at, by_name in enumerate(functions)]
            drawn.append(_mean_of_known(np.stack(values, -1)))
    found = {name: percentile_ends(np.concatenate(drawn), len(names)) for name, drawn in statistics.items()}
    return {name: pair for name, pair in found.items() if pair is not None}


def f1_difference(
    first: Mapping[str, LabelTable],
    second: Mapping[str, LabelTable],
    clusters: Sequence[object],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float | None, tuple[float, float] | None]:
    """Macro-F1, mean over sets, of the second model minus that of the first, with a bootstrap over images.

    Args:
        first: Set to the first model's images.
        second: The same images, in the same order, as the second model answered them.
        clusters: The image of each row, set after set.
        resamples: Number of draws; both models are taken on the same ones.
        seed: Seed of the draws.
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
    low, high = np.nanquantile(np.concatenate(drawn), [0.025, 0.975])
    return value, (float(low), float(high))


def _f1_over_sets(tables: Sequence[LabelTable], counts: Array) -> Array:
    ends = np.cumsum([0, *(len(table.gold) for table in tables)])
    values = [_f1_drawn(table, counts[:, ends[at] : ends[at + 1]]) for at, table in enumerate(tables)]
    return _mean_of_known(np.stack(values, -1))


def percentile_ends(drawn: Array, clusters: int) -> tuple[float, float] | None:
    """95% percentile interval of drawn values, Wilson's where all are 0 or all are 1; None where all are NaN."""
    known = drawn[~np.isnan(drawn)]
    if not len(known):
        return None
    if known.min() == known.max() and known[0] in (0.0, 1.0):
        return proportion([bool(known[0])] * clusters, "").interval
    low, high = np.quantile(known, [0.025, 0.975])
    return float(low), float(high)


def _resampled(table: LabelTable) -> dict[str, Callable[[Array], Array]]:
    """Statistic by name: counts ``[draws, n]`` of how often each image was drawn, to values ``[draws]``."""
    found: dict[str, Callable[[Array], Array]] = {"f1_macro": lambda counts: _f1_drawn(table, counts)}
    if table.kind == "multi_label":
        right = (table.gold == table.read).mean(1)
        found["label_accuracy"] = lambda counts: _ratio(counts @ right, counts.sum(1))
    if table.kind == "ordinal":
        found["quadratic_kappa"] = lambda counts: _kappa_drawn(table, counts)
    if table.scores is not None:
        found["auc_macro"] = lambda counts: _auc_drawn(table, counts)
    return found


def _f1(table: LabelTable) -> float | None:
    value = f1_score(table.gold, table.read, average="macro", zero_division=np.nan) if len(table.gold) else np.nan
    return None if np.isnan(value) else float(value)


def _f1_drawn(table: LabelTable, counts: Array) -> Array:
    hits = counts @ (table.gold * table.read)
    return _mean_of_known(_ratio(2 * hits, counts @ table.gold + counts @ table.read))


def _kappa(table: LabelTable) -> float | None:
    right, read = table.grades
    with warnings.catch_warnings():  # scikit-learn warns where kappa is undefined: one grade, and no other answered
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
    assert table.scores is not None
    held = [at for at in range(table.gold.shape[1]) if 0 < table.gold[:, at].sum() < len(table.gold)]
    values = [roc_auc_score(table.gold[:, at], table.scores[:, at]) for at in held]
    return float(np.mean(values)) if values else None


def _auc_drawn(table: LabelTable, counts: Array) -> Array:
    """Area as the share of (image of the class, other image) pairs that are in order, ties half (Mann-Whitney)."""
    assert table.scores is not None
    areas = [
        drawn_area(table.scores[:, at], counts * table.gold[:, at], counts * (1 - table.gold[:, at]))
        for at in range(table.gold.shape[1])
    ]
    return _mean_of_known(np.stack(areas, -1))


def drawn_area(scores: Array, positive: Array, negative: Array) -> Array:
    """Area under the ROC curve in each draw.

    Args:
        scores: ``[n]``, the larger the likelier to be positive.
        positive: How often each row was drawn as a positive, ``[draws, n]``.
        negative: How often as a negative, ``[draws, n]``.

    Returns:
        ``[draws]``, NaN where a draw has no positive or no negative.
    """
    order = np.argsort(scores, kind="stable")
    ranked = scores[order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    above = np.add.reduceat(positive[:, order], starts, axis=1)
    beside = np.add.reduceat(negative[:, order], starts, axis=1)
    below = np.cumsum(beside, axis=1) - beside / 2
    return _ratio((above * below).sum(1), above.sum(1) * beside.sum(1))


def _ratio(top: Array, bottom: Array) -> Array:
    """Divide, NaN where there is nothing to divide by."""
    return np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=bottom > 0)


def _mean_of_known(values: Array) -> Array:
    """Mean over the last axis without NaN, NaN where all are; ``[..., c]`` to ``[...]``."""
    return np.where(np.isnan(values).all(-1), np.nan, macro(values))


def _indicators(rows: Sequence[Sequence[int]], classes: int) -> Array:
    table = np.zeros((len(rows), classes))
    for at, indices in enumerate(rows):
        table[at, list(indices)] = 1.0
    return table
