"""The numbers of FLARE's tasks from verdicts: strict ones from what was read, official ones from the answers' texts."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from medtune.evaluation.flare.answers import value_of
from medtune.evaluation.flare.estimates import Estimate, Part, root
from medtune.evaluation.flare.metrics import THRESHOLDS, Counts, box_counts, class_counts, example_f1, label_counts
from medtune.evaluation.flare.official import OFFICIAL, official_parts
from medtune.evaluation.flare.verdicts import FlareVerdict, dataset_of, task_of
from medtune.evaluation.metrics import nested_macro, rare_classes
from medtune.evaluation.protocols.base import Verdict
from medtune.evaluation.result import Metric

_WHOLE = ("",)
_UNREAD = "an answer that could not be read"
_OFFICIAL_TEXT = {
    "classification": "balanced accuracy as in FLARE 2025's script: mean recall over the right answers' texts, "
    "pooled over data sets, compared as whole texts in lower case",
    "multi_label_classification": "micro-F1 of labels as in FLARE 2025's script: split at every semicolon and comma",
    "detection": "F1 of boxes as in FLARE 2025's script: IoU above 0.5, flat boxes are never found, answers that "
    "are no Python literal are left out",
    "instance_detection": "F1 of boxes with their classes as in FLARE 2025's script: IoU of 0.5 or more, answers "
    "that are no JSON are left out",
    "counting": "mean absolute error as in FLARE 2025's script: infinite if any answer is no number",
    "regression": "mean absolute error as in FLARE 2025's script: infinite if any answer is no number",
}
_SHORT = {"multi_label_classification": "multi_label", "instance_detection": "instance"}
MAIN = {
    "classification": "balanced_accuracy",
    "multi_label_classification": "multi_label_f1",
    "detection": "detection_f1_50",
    "instance_detection": "instance_f1_50",
    "counting": "counting_mae",
    "regression": "regression_mae",
}
"""Task to the number that stands for it in a table with one number per data set."""


def short(task: str) -> str:
    """Return the beginning of the names of a task's numbers."""
    return _SHORT.get(task, task)


def estimates_of(task: str, rows: Sequence[Verdict]) -> dict[str, Estimate]:
    """Return the strict numbers of one task's verdicts by name; none for a task whose answers are not read here.

    Args:
        task: normalised task.
        rows: its verdicts; rows of ``verdicts.csv`` (:func:`medtune.evaluation.measures.verdict_of`) will do.
    """
    makers: dict[str, Callable[[Sequence[Verdict]], dict[str, Estimate]]] = {
        "classification": _classification,
        "multi_label_classification": _labels,
        "detection": _boxes,
        "instance_detection": _instances,
        "counting": lambda rows: _numbers("counting", rows),
        "regression": lambda rows: _numbers("regression", rows),
    }
    if task not in makers:
        return {}
    found = makers[task](rows)
    found[f"{short(task)}_unread"] = _plain(
        rows,
        [Part(row.images, _WHOLE, float(row.predicted is None), 1.0) for row in rows],
        f"share of answers to {task} that could not be read",
        better=False,
    )
    return found


def _plain(
    rows: Sequence[Verdict], parts: Sequence[Part], text: str, unit: str = "fraction", better: bool = True, **more: Any
) -> Estimate:
    clusters = tuple(row.images for row in rows)
    return Estimate(text, unit, better, parts, more.pop("n", len(rows)), clusters=clusters, **more)


def _classification(rows: Sequence[Verdict]) -> dict[str, Estimate]:
    sets = [dataset_of(row.attribute) for row in rows]
    pooled = [Part(row.images, (row.gold,), float(row.correct), 1.0) for row in rows]
    apart = [Part(row.images, (name, row.gold), float(row.correct), 1.0) for name, row in zip(sets, rows, strict=True)]
    groups = [name for name, _ in sorted({part.cell for part in apart})]
    by_set = [Part(row.images, (name,), float(row.correct), 1.0) for name, row in zip(sets, rows, strict=True)]
    several = f"mean over the {len(set(sets))} data sets of"
    wrong = f"{_UNREAD} is wrong"
    return {
        "accuracy_macro": _plain(rows, by_set, f"{several} the share of right answers; {wrong}"),
        "balanced_accuracy": _plain(
            rows, pooled, f"mean recall over the right options, pooled over data sets; {wrong}", caution=_rare(pooled)
        ),
        "balanced_accuracy_sets": _plain(
            rows,
            apart,
            f"{several} the mean recall over the right options; {wrong}",
            reduce=nested_macro(groups),
            caution=_rare(apart),
        ),
    }


def _rare(parts: Sequence[Part]) -> str:
    images: dict[str, set[tuple[str, ...]]] = {}
    for part in parts:
        images.setdefault(": ".join(part.cell), set()).add(part.images)
    return rare_classes({name: len(shown) for name, shown in images.items()})


def _values(task: str, row: Verdict) -> tuple[Any, Any]:
    return value_of(task, row.gold), None if row.predicted is None else value_of(task, row.predicted)


def _f1_parts(images: tuple[str, ...], cell: tuple[str, ...], counts: Counts) -> Part:
    return Part(images, cell, 2.0 * counts.tp, 2.0 * counts.tp + counts.fp + counts.fn)


def _labels(rows: Sequence[Verdict]) -> dict[str, Estimate]:
    pairs = [_values("multi_label_classification", row) for row in rows]
    micro = [_f1_parts(row.images, _WHOLE, label_counts(*pair)) for row, pair in zip(rows, pairs, strict=True)]
    each = [Part(row.images, _WHOLE, example_f1(*pair), 1.0) for row, pair in zip(rows, pairs, strict=True)]
    missed = f"{_UNREAD} misses all labels"
    return {
        "multi_label_f1": _plain(rows, micro, f"micro-F1 of labels over all images; {missed}"),
        "multi_label_example_f1": _plain(
            rows, each, f"mean over images of the F1 of labels, 1 if there is rightly none; {missed}"
        ),
    }


def _boxes(rows: Sequence[Verdict]) -> dict[str, Estimate]:
    pairs = [_values("detection", row) for row in rows]
    found = {}
    for threshold in THRESHOLDS:
        parts = [
            _f1_parts(row.images, _WHOLE, box_counts(*pair, threshold)) for row, pair in zip(rows, pairs, strict=True)
        ]
        text = f"F1 of boxes at an IoU of {threshold} or more, largest pairing; {_UNREAD} finds nothing"
        found[f"detection_f1_{round(100 * threshold)}"] = _plain(rows, parts, text)
    return found


def _instances(rows: Sequence[Verdict]) -> dict[str, Estimate]:
    pairs = [_values("instance_detection", row) for row in rows]
    found = {}
    for threshold in THRESHOLDS:
        by_class = [
            _f1_parts(row.images, (name,), counts)
            for row, pair in zip(rows, pairs, strict=True)
            for name, counts in class_counts(*pair, threshold).items()
        ]
        whole = [Part(part.images, _WHOLE, part.top, part.bottom) for part in by_class]
        text = f"F1 of boxes of their class at an IoU of {threshold} or more"
        at = round(100 * threshold)
        found[f"instance_f1_{at}"] = _plain(rows, whole, f"{text}, over all classes; {_UNREAD} finds nothing")
        found[f"instance_class_f1_{at}"] = _plain(
            rows, by_class, f"mean over classes of the {text}; {_UNREAD} finds nothing"
        )
    return found


def _numbers(task: str, rows: Sequence[Verdict]) -> dict[str, Estimate]:
    values = [(row, *_values(task, row)) for row in rows]
    read = [(row, said - gold) for row, gold, said in values if said is not None]
    filled = [Part(row.images, _WHOLE, abs((0.0 if said is None else said) - gold), 1.0) for row, gold, said in values]
    unit = "cells" if task == "counting" else "points"
    out = f"over the answers that could be read ({task}_unread says how many could not)"
    shared: dict[str, Any] = {"unit": unit, "better": False}
    absolute = [Part(row.images, _WHOLE, abs(error), 1.0) for row, error in read]
    squared = [Part(row.images, _WHOLE, error * error, 1.0) for row, error in read]
    zero = f"mean absolute error; {_UNREAD} counts as 0, as in FLARE 2026's baseline"
    return {
        f"{task}_mae": _plain(rows, absolute, f"mean absolute error {out}", n=len(read), **shared),
        f"{task}_rmse": _plain(rows, squared, f"root mean squared error {out}", n=len(read), reduce=root, **shared),
        f"{task}_mae_zero": _plain(rows, filled, zero, **shared),
    }


def official_numbers(task: str, rows: Sequence[FlareVerdict], resamples: int, seed: int) -> dict[str, Metric]:
    """Return the published number of a task, of the answers' texts; of two equal questions the later one counts."""
    if task not in OFFICIAL:
        return {}
    kept = list({row.key: row for row in rows}.values())
    pairs = [(row.right, row.said) for row in kept]
    value = OFFICIAL[task](pairs)
    parts = [
        Part(row.images, cell, top, bottom)
        for row, pair in zip(kept, pairs, strict=True)
        for cell, top, bottom in official_parts(task, pair)
    ]
    number = task in ("counting", "regression")
    unit = "fraction" if not number else "cells" if task == "counting" else "points"
    caution = ""
    if math.isinf(value):
        caution = "infinite, because an answer is no number"
    elif task == "classification":
        caution = _rare(parts)
    estimate = Estimate(_OFFICIAL_TEXT[task], unit, not number, parts, len(kept), caution=caution)
    metric = estimate.metric(resamples, seed)
    return {f"{short(task)}_official": _with_value(metric, None if not math.isfinite(value) else value)}


def _with_value(metric: Metric, value: float | None) -> Metric:
    ends = None if value is None else metric.interval
    return Metric(value, metric.unit, metric.higher_is_better, metric.n, ends, metric.definition, metric.caution)


def by_task(rows: Sequence[Any]) -> dict[str, list[Any]]:
    """Group verdicts by task."""
    groups: dict[str, list[Any]] = {}
    for row in rows:
        groups.setdefault(task_of(row.attribute), []).append(row)
    return groups


def unread_reasons(rows: Sequence[FlareVerdict]) -> dict[str, dict[str, int]]:
    """Return how many answers of each task could not be read, by reason; the most frequent reason is first."""
    counts: dict[str, dict[str, int]] = {}
    for row in rows:
        if row.reason:
            of_task = counts.setdefault(task_of(row.attribute), {})
            of_task[row.reason] = of_task.get(row.reason, 0) + 1
    return {task: dict(sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))) for task, found in counts.items()}


def questions_of(rows: Sequence[FlareVerdict]) -> Mapping[str, int]:
    """Return the number of questions of each task."""
    return {task: len(found) for task, found in sorted(by_task(rows).items())}
