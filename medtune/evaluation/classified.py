"""Scores of classified images: per set over its fixed classes, macro over sets, micro over images.

scikit-learn computes the values; :mod:`medtune.evaluation.resampled` computes the same statistics for many bootstrap
resamples at once. :mod:`medtune.evaluation.protocols.classification` asks the questions and reads the answers.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from medtune.data.labels import LabelTask
from medtune.errors import DataError
from medtune.evaluation.baselines import CHANCE, MAJORITY, chance, majority
from medtune.evaluation.labels import read_labels
from medtune.evaluation.metrics import BOOTSTRAP, macro, rare_classes
from medtune.evaluation.protocols.base import Pair, Verdict
from medtune.evaluation.resampled import LabelTable, f1_difference, intervals, points
from medtune.evaluation.result import Metric
from medtune.evaluation.scoring import (
    SHARE,
    Numbers,
    by_attribute,
    macro_interval,
    share_of,
    swap_numbers,
    unread,
)

EXACT = "exact match: share of images whose findings are all right and none is missing"
F1 = (
    "macro-F1 over the set's classes; an answer out of vocabulary is a false negative of its right classes and no "
    "false positive; classes that neither occur nor are answered are left out"
)
DEFINITIONS = {
    "f1_macro": F1,
    "label_accuracy": "mean over the set's labels of the share of images on which presence or absence is right; an "
    "unread answer counts as one without a finding, see the strict number",
    "label_accuracy_strict": "the same, but an unread answer is wrong about every label",
    "quadratic_kappa": "Cohen's kappa with quadratic weights over the grades; an answer out of vocabulary counts as "
    "the grade farthest from the right one",
    "auc_macro": "mean over the set's classes of the area under the ROC curve of one against the rest, by the row's "
    "scores; classes without an image, or with all of them, are left out",
}
OVER_CLASSES = ("f1_macro", "auc_macro")
"""Means over classes, in which a class with few images weighs as much as the others."""
CONSTANT = "macro-F1 of always giving the set's most frequent answer in the training split"
STRAY = "share of answers that name no class, or something beside the classes they name; they are wrong"


@dataclass(frozen=True)
class ClassVerdict(Verdict):
    """The verdict on one classified image.

    Args:
        kind: ``multi_class``, ``multi_label`` or ``ordinal``.
        classes: All classes of the set, by index.
        gold_indices: Indices of the right classes.
        read_indices: Indices of the classes that the answer names.
        out_of_vocabulary: Whether the answer, or a part of it, names no class.
        scores: One number for each class, larger means more likely; None if the row has no scores.
    """

    kind: LabelTask = "multi_class"
    classes: tuple[str, ...] = ()
    gold_indices: tuple[int, ...] = ()
    read_indices: tuple[int, ...] = ()
    out_of_vocabulary: bool = False
    scores: tuple[float, ...] | None = None


def score_classification(
    verdicts: Sequence[Verdict], most_frequent: dict[str, str], *, resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Score one model's classification verdicts.

    Args:
        verdicts: Verdicts on the true and on swapped images.
        most_frequent: Set to the most frequent answer of its training split; a set may be missing.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resampling.

    Returns:
        ``{"overall": numbers, "attributes": {set: numbers}, "swapped": numbers or None}``.

    Raises:
        DataError: Questions of one set have different classes or tasks.
    """
    class_verdicts = [cast(ClassVerdict, verdict) for verdict in verdicts]
    true, swapped = ([verdict for verdict in class_verdicts if verdict.swapped is side] for side in (False, True))
    groups = by_attribute(true)
    for name, rows in groups.items():
        if len({(verdict.kind, verdict.classes) for verdict in rows}) > 1:
            raise DataError(
                f"the questions of the set {name!r} have different classes or tasks; prepare them in one run."
            )
    exchanged = None
    if swapped:
        overall = _overall(swapped, most_frequent, resamples, seed)
        exchanged = {**swap_numbers(true, swapped, overall, resamples, seed), "f1_macro": overall["f1_macro"]}
    return {
        "overall": _overall(true, most_frequent, resamples, seed),
        "attributes": {name: _of_set(rows, most_frequent.get(name), resamples, seed) for name, rows in groups.items()},
        "swapped": exchanged,
    }


def sets_of(verdicts: Sequence[Verdict]) -> dict[str, dict[str, Any]]:
    """Return task and classes of each set, for the results."""
    by_set = {verdict.attribute: verdict for verdict in verdicts if isinstance(verdict, ClassVerdict)}
    return {name: {"task": verdict.kind, "classes": list(verdict.classes)} for name, verdict in sorted(by_set.items())}


def label_table(rows: Sequence[ClassVerdict]) -> LabelTable:
    """Convert the verdicts of one set to arrays."""
    scores = [verdict.scores for verdict in rows]
    return LabelTable.of(
        rows[0].kind,
        len(rows[0].classes),
        [verdict.gold_indices for verdict in rows],
        [verdict.read_indices for verdict in rows],
        None
        if any(row_scores is None for row_scores in scores)
        else [list(row_scores) for row_scores in scores if row_scores is not None],
        [verdict.predicted is None for verdict in rows],
    )


def images_of_classes(rows: Sequence[ClassVerdict]) -> dict[str, int]:
    """Return the number of images of each class of a set that occurs or is answered; macro-F1 leaves out the others."""
    images: dict[int, set[tuple[str, ...]]] = {}
    for verdict in rows:
        for index in verdict.gold_indices:
            images.setdefault(index, set()).add(verdict.images)
        for index in verdict.read_indices:
            images.setdefault(index, set())
    return {rows[0].classes[index]: len(shown) for index, shown in sorted(images.items())}


def _of_set(rows: list[ClassVerdict], most_frequent: str | None, resamples: int, seed: int) -> Numbers:
    table = label_table(rows)
    images = [verdict.images for verdict in rows]
    ends = intervals({"": table}, images, resamples=resamples, seed=seed)
    rare = rare_classes(images_of_classes(rows))
    numbers = {}
    for name, value in points(table).items():
        caution = rare if name in OVER_CLASSES else ""
        interval = None if caution else ends.get(name)
        text = f"{DEFINITIONS[name]}; {BOOTSTRAP}"
        numbers[name] = Metric(value, "fraction", True, len(rows), interval, text, caution)
    exact = EXACT if table.kind == "multi_label" else SHARE
    return {
        "accuracy": share_of(rows, lambda verdict: verdict.correct, exact, resamples, seed),
        **numbers,
        "unread": unread(rows, resamples, seed),
        "out_of_vocabulary": _out_of_vocabulary(rows, resamples, seed),
        "chance": chance(rows),
        "majority": majority(rows, resamples, seed),
        "majority_f1": _majority_f1(table, rows, most_frequent),
    }


def _majority_f1(table: LabelTable, rows: Sequence[ClassVerdict], most_frequent: str | None) -> Metric:
    value = None
    if most_frequent is not None:
        indices, _ = read_labels(most_frequent, rows[0].classes, rows[0].kind == "multi_label")
        value = points(table.answered_by(indices))["f1_macro"]
    return Metric(value, "fraction", None, len(rows), None, CONSTANT)


def _overall(rows: Sequence[ClassVerdict], most_frequent: Mapping[str, str], resamples: int, seed: int) -> Numbers:
    groups = by_attribute(rows)
    over = f"mean over the {len(groups)} sets of"
    tables = {name: label_table(group) for name, group in groups.items()}
    in_order = [verdict for group in groups.values() for verdict in group]
    ends = intervals(
        tables, [verdict.images for verdict in in_order], resamples=resamples, seed=seed, only=("f1_macro",)
    )

    def number(
        value: float | None, better: bool | None, ends: tuple[float, float] | None, text: str, caution: str = ""
    ) -> Metric:
        return Metric(value, "fraction", better, len(rows), ends, f"{over} {text}", caution)

    caution = rare_classes(
        {f"{name}: {of}": count for name, group in groups.items() for of, count in images_of_classes(group).items()}
    )

    def mean(measure: Callable[[list[ClassVerdict]], float | None]) -> float | None:
        values = [value for value in map(measure, groups.values()) if value is not None]
        return float(np.mean(values)) if values else None

    priors = [float(verdict.prior) for verdict in rows if verdict.prior is not None]
    known = len(priors) == len(rows)
    f1 = [points(table)["f1_macro"] for table in tables.values()]
    constant = [_majority_f1(tables[name], group, most_frequent.get(name)).value for name, group in groups.items()]
    return {
        "accuracy_macro": number(
            mean(lambda group: float(np.mean([verdict.correct for verdict in group]))),
            True,
            macro_interval(rows, [float(verdict.correct) for verdict in rows], resamples, seed),
            f"the share of right answers, out of vocabulary wrong; {BOOTSTRAP}",
        ),
        "f1_macro": number(
            _mean(f1), True, None if caution else ends.get("f1_macro"), f"the {F1}; {BOOTSTRAP}", caution
        ),
        "accuracy_micro": share_of(rows, lambda verdict: verdict.correct, SHARE, resamples, seed),
        "unread": unread(rows, resamples, seed),
        "out_of_vocabulary": _out_of_vocabulary(rows, resamples, seed),
        "chance_macro": number(mean(lambda group: chance(group).value), None, None, CHANCE),
        "chance_micro": chance(rows),
        "majority_macro": number(
            mean(lambda group: majority(group).value) if known else None,
            None,
            macro_interval(rows, priors, resamples, seed) if known else None,
            f"{MAJORITY}; {BOOTSTRAP}",
        ),
        "majority_micro": majority(rows, resamples, seed),
        "majority_f1_macro": number(None if None in constant else _mean(constant), None, None, CONSTANT),
    }


def _out_of_vocabulary(rows: Sequence[ClassVerdict], resamples: int, seed: int) -> Metric:
    return share_of(rows, lambda verdict: verdict.out_of_vocabulary, STRAY, resamples, seed, False)


def _mean(values: Sequence[float | None]) -> float | None:
    numbers = np.asarray([np.nan if value is None else value for value in values], dtype=np.float64)
    return float(macro(numbers)) if not np.isnan(numbers).all() else None


def f1_comparison(
    pairs: Mapping[int, Sequence[Pair]], sets: Mapping[str, Mapping[str, Any]], base: str, resamples: int, seed: int
) -> Metric:
    """Return the difference in macro-F1, mean over sets; the labels are parsed from the rows of ``verdicts.csv``.

    Args:
        pairs: Training seed to its pairs.
        sets: Set to its task and classes.
        base: Name of the model that is subtracted.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resampling.
    """
    by_set = {
        (name, of): [pair for pair in seed_pairs if pair[0]["attribute"] == name]
        for of, seed_pairs in pairs.items()
        for name in sets
    }
    sides: list[dict[str, LabelTable]] = []
    for side in (0, 1):
        tables = {}
        for (name, of), rows in by_set.items():
            classes, several = tuple(sets[name]["classes"]), sets[name]["task"] == "multi_label"
            gold = [read_labels(pair[side]["gold"], classes, several)[0] for pair in rows]
            read = [read_labels(pair[side]["predicted"], classes, several)[0] for pair in rows]
            tables[f"{name} {of}"] = LabelTable.of(sets[name]["task"], len(classes), gold, read)
        sides.append(tables)
    images = [pair[0]["images"] for rows in by_set.values() for pair in rows]
    caution = rare_classes(_images_of_pairs(by_set, sides[0], sides[1], sets))
    value, interval = f1_difference(sides[0], sides[1], images, resamples=resamples, seed=seed)
    text = f"mean over the {len(sets)} sets of macro-F1 minus that of {base}; interval by a bootstrap over images"
    return Metric(value, "difference of fractions", True, len(images), None if caution else interval, text, caution)


def _images_of_pairs(
    by_set: Mapping[tuple[str, int], Sequence[Pair]],
    first: Mapping[str, LabelTable],
    second: Mapping[str, LabelTable],
    sets: Mapping[str, Mapping[str, Any]],
) -> dict[str, int]:
    """Return the number of images of each class that occurs or that one of two models answers, by set and class."""
    counts: dict[str, int] = {}
    for (name, of), rows in by_set.items():
        before, after = first[f"{name} {of}"], second[f"{name} {of}"]
        shown = np.asarray([pair[0]["images"] for pair in rows])
        for index, text in enumerate(sets[name]["classes"]):
            right = before.gold[:, index] > 0
            if right.any() or before.read[:, index].any() or after.read[:, index].any():
                counts[f"{name}: {text}"] = len(set(shown[right].tolist()))
    return counts
