"""FLARE 2025's published evaluation, number for number (ME-VLIP's ``evaluation.py``), with the quirks described here.

The answers of one task are pooled over all data sets, under the key "image names, question": of two questions with one
key the later one counts. Where the script recognises only one spelling of a task (``instance_detection``, ``multi-label
classification``) and scores no other, these functions are called for every spelling.
"""

import ast
import json
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from medtune.evaluation.flare.metrics import Counts

Pair = tuple[Any, Any]
"""Right answer and prediction, as they stand in the files."""


def official_balanced_accuracy(pairs: Sequence[Pair]) -> float:
    """Return the mean recall over the right answers' texts, pooled over data sets, stripped and in lower case.

    ``A`` of one data set and ``A`` of another are one class, and an answer with more words than the letter is wrong.
    NaN without answers.
    """
    from sklearn.metrics import recall_score

    if not pairs:
        return math.nan
    gold, said = ([_folded(pair[side]) for pair in pairs] for side in (0, 1))
    return float(recall_score(gold, said, labels=sorted(set(gold)), average="macro", zero_division=0.0))


def _folded(value: Any) -> str:
    return "" if value is None else str(value).strip().lower()


def official_label_f1(pairs: Sequence[Pair]) -> float:
    """Return the micro-F1 of labels, split at every semicolon and comma.

    A label that holds commas becomes several labels. 0 if nothing is right.
    """
    return _f1(pairs, _label_counts)


def _label_counts(gold: Any, said: Any) -> Counts:
    if not isinstance(gold, str) or not isinstance(said, str):
        return Counts(0, 0, 0)
    right, read = ({part.strip().lower() for part in re.split("[;,]", text)} - {""} for text in (gold, said))
    return Counts(len(right & read), len(read - right), len(right - read))


def official_detection_f1(pairs: Sequence[Pair]) -> float:
    """Return the F1 of boxes at an IoU above 0.5, each right box taking the best free box in turn.

    Answers are Python literals. A prediction that is none is left out, neither missed nor wrong. The numbers of a flat
    box ``[x1, y1, x2, y2]`` are taken for four boxes, none of which can be found.
    """
    return _f1(pairs, _detection_counts)


def _detection_counts(gold: Any, said: Any) -> Counts:
    right, read = _literal(gold), _literal(said)
    if right is _UNREADABLE or read is _UNREADABLE or not isinstance(right, Collection):
        return Counts(0, 0, 0)
    if not isinstance(read, list):
        return Counts(0, 0, len(right))
    taken: set[int] = set()
    for box in right:
        best, at = 0.0, -1
        for index, other in enumerate(read):
            overlap = 0.0 if index in taken else _iou(box, other)
            best, at = (overlap, index) if overlap > best else (best, at)
        if best > 0.5:
            taken.add(at)
    return Counts(len(taken), len(read) - len(taken), len(right) - len(taken))


def official_instance_f1(pairs: Sequence[Pair]) -> float:
    """Return the F1 of boxes with their classes at an IoU of 0.5 or more, the best pair of a class first.

    Answers are JSON; a dictionary with single quotes is left out as unparseable. A class whose boxes are a number or
    null ends the count of that answer; which classes come before it depends on Python's hash seed in the script, and
    here the right answer's classes come first.
    """
    return _f1(pairs, _instance_counts)


def _instance_counts(gold: Any, said: Any) -> Counts:
    right, read = _decoded(gold), _decoded(said)
    if not isinstance(right, Mapping) or read is _UNREADABLE:
        return Counts(0, 0, 0)
    if not isinstance(read, Mapping):
        return Counts(0, 0, sum(len(boxes) for boxes in right.values() if isinstance(boxes, list)))
    total = Counts(0, 0, 0)
    for name in {**right, **read}:
        first, second = right.get(name, []), read.get(name, [])
        if not all(isinstance(boxes, list | str | Mapping) for boxes in (first, second)):
            break
        found = _greedy(list(first), list(second))
        total += Counts(found, len(second) - found, len(first) - found)
    return total


def _greedy(first: Sequence[Any], second: Sequence[Any]) -> int:
    overlaps = sorted(
        ((_iou(box, other), at, index) for at, box in enumerate(first) for index, other in enumerate(second)),
        key=lambda found: -found[0],
    )
    left: set[int] = set()
    right: set[int] = set()
    for overlap, at, index in overlaps:
        if overlap >= 0.5 and at not in left and index not in right:
            left.add(at)
            right.add(index)
    return len(left)


def official_mae(pairs: Sequence[Pair]) -> float:
    """Return the mean absolute error of counts or measures; infinite if any value is no number, NaN without values."""
    try:
        values = [(float(gold), float(said)) for gold, said in pairs]
    except (TypeError, ValueError, OverflowError):
        return math.inf
    errors = [abs(gold - said) for gold, said in values]
    return sum(errors) / len(errors) if errors else math.nan


OFFICIAL: dict[str, Callable[[Sequence[Pair]], float]] = {
    "classification": official_balanced_accuracy,
    "multi_label_classification": official_label_f1,
    "detection": official_detection_f1,
    "instance_detection": official_instance_f1,
    "counting": official_mae,
    "regression": official_mae,
}
"""Task to its published number."""
_UNREADABLE = object()


def _literal(value: Any) -> Any:
    """Decode a text as a Python literal, if it is one. A value that is no text stays as it is."""
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return _UNREADABLE


def _decoded(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return _UNREADABLE


def _iou(first: Any, second: Any) -> float:
    try:
        (ax, ay, bx, by), (cx, cy, dx, dy) = first, second
        left, top, right, bottom = max(ax, cx), max(ay, cy), min(bx, dx), min(by, dy)
        if right <= left or bottom <= top:
            return 0.0
        shared = (right - left) * (bottom - top)
        union = (bx - ax) * (by - ay) + (dx - cx) * (dy - cy) - shared
        return float(shared / union) if union > 0 else 0.0
    except (TypeError, ValueError, OverflowError):
        return 0.0


def _f1(pairs: Sequence[Pair], count: Callable[[Any, Any], Counts]) -> float:
    """Return the harmonic mean of precision and recall of summed counts; 0 if nothing is right."""
    tp, fp, fn = (sum(column) for column in zip(Counts(0, 0, 0), *(count(*pair) for pair in pairs), strict=True))
    precision = tp / (tp + fp) if tp + fp else 0.0
    recall = tp / (tp + fn) if tp + fn else 0.0
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


_COUNTS = {
    "multi_label_classification": _label_counts,
    "detection": _detection_counts,
    "instance_detection": _instance_counts,
}


def official_parts(task: str, pair: Pair) -> list[tuple[tuple[str, ...], float, float]]:
    """Return what one answer adds to the sums of its task's number: cell, numerator, denominator.

    A number whose sums are ratios of these is resampled without a call for each resample.
    """
    gold, said = pair
    if task == "classification":
        return [((_folded(gold),), float(_folded(gold) == _folded(said)), 1.0)]
    if task in _COUNTS:
        counts = _COUNTS[task](gold, said)
        return [(("",), 2.0 * counts.tp, 2.0 * counts.tp + counts.fp + counts.fn)]
    error = official_mae([pair])
    return [(("",), error, 1.0)] if math.isfinite(error) else []
