"""FLARE's metrics as functions of what was read; the bootstrap recomputes them from sums (:mod:`.estimates`).

Sources: balanced accuracy, micro-F1, F1 at an intersection over union, MAE: Munir et al. 2025 (ME-VLIP), section 3,
    after
the challenge's rules. Thresholds 0.3 to 0.7, RMSE and the example F1: the baseline of FLARE 2026.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medtune.datasets.flare.boxes import Box

THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)
"""Intersections over union at which boxes count as found."""


class Counts(NamedTuple):
    """True positives, false positives and false negatives."""

    tp: int
    fp: int
    fn: int

    @property
    def f1(self) -> float:
        """F1 = 2 TP / (2 TP + FP + FN); NaN if there is nothing to find and nothing was named."""
        total = 2 * self.tp + self.fp + self.fn
        return 2 * self.tp / total if total else math.nan

    def __add__(self, other: "Counts") -> "Counts":  # type: ignore[override]
        """Add the counts of two answers, for the micro average."""
        return Counts(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn)


def label_counts(right: Collection[str], read: Collection[str] | None) -> Counts:
    """Compare the labels of one image, as sets; an answer that could not be read misses all.

    The micro-F1 of a set is :attr:`Counts.f1` of the sum over its images.
    """
    first, second = set(right), set(read or ())
    return Counts(len(first & second), len(second - first), len(first - second))


def example_f1(right: Collection[str], read: Collection[str] | None) -> float:
    """Return the F1 of one image's labels: 2 |R and S| / (|R| + |S|).

    It is 1 if both sets are empty, and 0 for an answer that could not be read. The example F1 of a set is the mean.
    """
    if read is None:
        return 0.0
    counts = label_counts(right, read)
    return 1.0 if math.isnan(counts.f1) else counts.f1


def iou_matrix(first: Sequence[Box], second: Sequence[Box]) -> NDArray[np.float64]:
    """Return the intersection over union of every pair of boxes, ``[first, second]``.

    IoU = |A and B| / |A or B|, areas in square pixels with corners as real numbers (no pixel is added to a side). A box
    without area, or one that is turned around, has an IoU of 0 with every other.
    """
    a, b = (np.asarray(boxes, dtype=np.float64).reshape(-1, 4) for boxes in (first, second))
    with np.errstate(over="ignore", invalid="ignore"):
        low = np.maximum(a[:, None, :2], b[None, :, :2])
        high = np.minimum(a[:, None, 2:], b[None, :, 2:])
        shared = np.clip(high - low, 0.0, None).prod(-1)
        area_a, area_b = (np.clip(boxes[:, 2:] - boxes[:, :2], 0.0, None).prod(-1) for boxes in (a, b))
        union = area_a[:, None] + area_b[None, :] - shared
    known = np.isfinite(union) & (union > 0)
    return np.divide(shared, union, out=np.zeros_like(shared), where=known)


def box_counts(right: Sequence[Box], read: Sequence[Box] | None, threshold: float) -> Counts:
    """Count the boxes of one image that are found at a threshold.

    A right and a read box can be paired if IoU >= threshold. The pairing is the largest one (Hopcroft and Karp, scipy),
    so the count does not depend on the order of boxes, and no greedy choice can lose a pair. Each box is in one pair at
    most: a second box on the same lesion is a false positive. An answer that could not be read finds nothing.

    Args:
        right: the right boxes.
        read: the boxes of the answer; None if it could not be read.
        threshold: smallest IoU, included.
    """
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import maximum_bipartite_matching

    boxes = list(read or ())
    if not right or not boxes:
        return Counts(0, len(boxes), len(right))
    pairs = csr_matrix(iou_matrix(right, boxes) >= threshold)
    found = int((maximum_bipartite_matching(pairs, perm_type="column") >= 0).sum())
    return Counts(found, len(boxes) - found, len(right) - found)


def class_counts(
    right: Mapping[str, Sequence[Box]], read: Mapping[str, Sequence[Box]] | None, threshold: float
) -> dict[str, Counts]:
    """Count the found boxes of each class of the right or the read answer; boxes of two classes are never paired."""
    said = read or {}
    return {name: box_counts(right.get(name, ()), said.get(name, ()), threshold) for name in sorted({*right, *said})}


def absolute_errors(right: Sequence[float], read: Sequence[float | None], unread: float | None = None) -> list[float]:
    """Return |read - right| of each answer; answers that could not be read are left out, or count as ``unread``."""
    pairs = zip(right, read, strict=True)
    filled = ((gold, unread if value is None else value) for gold, value in pairs)
    return [abs(value - gold) for gold, value in filled if value is not None]


def mae(errors: Sequence[float]) -> float:
    """Return the mean absolute error; NaN without errors."""
    return math.fsum(errors) / len(errors) if errors else math.nan


def rmse(errors: Sequence[float]) -> float:
    """Return the root of the mean squared error; NaN without errors."""
    return math.sqrt(math.fsum(error * error for error in errors) / len(errors)) if errors else math.nan
