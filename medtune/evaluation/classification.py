"""From classification verdicts to numbers: per set over its fixed classes, macro over sets, micro over images.

The point values come from scikit-learn; :mod:`medtune.evaluation.resampled` holds the same statistics for many
bootstrap draws at once.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np

from medtune.errors import DataError
from medtune.evaluation.baselines import CHANCE, MAJORITY, chance, majority
from medtune.evaluation.labels import read_labels
from medtune.evaluation.metrics import macro, proportion
from medtune.evaluation.protocols.base import Verdict
from medtune.evaluation.protocols.classification import ClassVerdict
from medtune.evaluation.resampled import LabelTable, intervals, points
from medtune.evaluation.result import Number
from medtune.evaluation.scoring import BOOTSTRAP, SHARE, Numbers, by_attribute, macro_interval, swap_numbers

EXACT = "exact match: share of images whose findings are all right and none is missing; Wilson interval"
F1 = (
    "macro-F1 over the set's classes; an answer out of vocabulary is a false negative of its right classes and no "
    "false positive; classes that neither occur nor are answered are left out"
)
DEFINITIONS = {
    "f1_macro": F1,
    "label_accuracy": "mean over the set's labels of the share of images on which presence or absence is right",
    "quadratic_kappa": "Cohen's kappa with quadratic weights over the grades; an answer out of vocabulary counts as "
    "the grade farthest from the right one",
    "auc_macro": "mean over the set's classes of the area under the ROC curve of one against the rest, by the row's "
    "scores; classes without an image, or with all of them, are left out",
}
CONSTANT = "macro-F1 of always giving the set's most frequent answer in the training split"
OUT_OF_VOCABULARY = "share of answers that name no class, or something beside the classes they name; they are wrong"


def score_classification(
    verdicts: Sequence[Verdict], commonest: dict[str, str], *, draws: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Score one model's classification verdicts.

    Args:
        verdicts: On the true and on swapped images.
        commonest: Set to the most frequent answer of its training split; a set may lack one.
        draws: Bootstrap draws.
        seed: Seed of the draws.

    Returns:
        ``{"overall": numbers, "attributes": {set: numbers}, "swapped": numbers or None}``.

    Raises:
        DataError: Questions of one set have different classes or tasks.
    """
    held = [cast(ClassVerdict, one) for one in verdicts]
    true, swapped = ([one for one in held if one.swapped is side] for side in (False, True))
    groups = by_attribute(true)
    for name, rows in groups.items():
        if len({(one.kind, one.classes) for one in rows}) > 1:
            raise DataError(
                f"the questions of the set {name!r} have different classes or tasks; prepare them in one run."
            )
    exchanged = None
    if swapped:
        overall = _overall(swapped, commonest, draws, seed)
        exchanged = {**swap_numbers(true, swapped, overall, draws, seed), "f1_macro": overall["f1_macro"]}
    return {
        "overall": _overall(true, commonest, draws, seed),
        "attributes": {name: _of_set(rows, commonest.get(name), draws, seed) for name, rows in groups.items()},
        "swapped": exchanged,
    }


def sets_of(verdicts: Sequence[Verdict]) -> dict[str, dict[str, Any]]:
    """Return task and classes of each set, for readers of the results."""
    found = {one.attribute: one for one in verdicts if isinstance(one, ClassVerdict)}
    return {name: {"task": one.kind, "classes": list(one.classes)} for name, one in sorted(found.items())}


def label_table(rows: Sequence[ClassVerdict]) -> LabelTable:
    """Lay out the verdicts of one set as arrays."""
    scores = [one.scores for one in rows]
    return LabelTable.of(
        rows[0].kind,
        len(rows[0].classes),
        [one.gold_indices for one in rows],
        [one.read_indices for one in rows],
        None if any(one is None for one in scores) else [list(one) for one in scores if one is not None],
    )


def _of_set(rows: list[ClassVerdict], commonest: str | None, draws: int, seed: int) -> Numbers:
    table = label_table(rows)
    images = [one.images for one in rows]
    ends = intervals({"": table}, images, draws=draws, seed=seed)
    numbers = {
        name: Number(value, "fraction", True, len(rows), ends.get(name), f"{DEFINITIONS[name]}; {BOOTSTRAP}")
        for name, value in points(table).items()
    }
    return {
        "accuracy": proportion([one.correct for one in rows], EXACT if table.kind == "multi_label" else SHARE),
        **numbers,
        "out_of_vocabulary": _out_of_vocabulary(rows),
        "chance": chance(rows),
        "majority": majority(rows),
        "majority_f1": _majority_f1(table, rows, commonest),
    }


def _majority_f1(table: LabelTable, rows: Sequence[ClassVerdict], commonest: str | None) -> Number:
    value = None
    if commonest is not None:
        indices, _ = read_labels(commonest, rows[0].classes, rows[0].kind == "multi_label")
        value = points(table.answered_by(indices))["f1_macro"]
    return Number(value, "fraction", None, len(rows), None, CONSTANT)


def _overall(rows: Sequence[ClassVerdict], commonest: Mapping[str, str], draws: int, seed: int) -> Numbers:
    groups = by_attribute(rows)
    over = f"mean over the {len(groups)} sets of"
    tables = {name: label_table(group) for name, group in groups.items()}
    in_order = [one for group in groups.values() for one in group]
    ends = intervals(tables, [one.images for one in in_order], draws=draws, seed=seed, only=("f1_macro",))

    def number(value: float | None, better: bool | None, ends: tuple[float, float] | None, text: str) -> Number:
        return Number(value, "fraction", better, len(rows), ends, f"{over} {text}")

    def mean(measure: Callable[[list[ClassVerdict]], float | None]) -> float | None:
        values = [value for value in map(measure, groups.values()) if value is not None]
        return float(np.mean(values)) if values else None

    priors = [float(one.prior) for one in rows if one.prior is not None]
    known = len(priors) == len(rows)
    f1 = [points(table)["f1_macro"] for table in tables.values()]
    constant = [_majority_f1(tables[name], group, commonest.get(name)).value for name, group in groups.items()]
    return {
        "accuracy_macro": number(
            mean(lambda group: float(np.mean([one.correct for one in group]))),
            True,
            macro_interval(rows, [float(one.correct) for one in rows], draws, seed),
            f"the share of right answers, out of vocabulary wrong; {BOOTSTRAP}",
        ),
        "f1_macro": number(_mean(f1), True, ends.get("f1_macro"), f"the {F1}; {BOOTSTRAP}"),
        "accuracy_micro": proportion([one.correct for one in rows], SHARE),
        "out_of_vocabulary": _out_of_vocabulary(rows),
        "chance_macro": number(mean(lambda group: chance(group).value), None, None, CHANCE),
        "chance_micro": chance(rows),
        "majority_macro": number(
            mean(lambda group: majority(group).value) if known else None,
            None,
            macro_interval(rows, priors, draws, seed) if known else None,
            f"{MAJORITY}; {BOOTSTRAP}",
        ),
        "majority_micro": majority(rows),
        "majority_f1_macro": number(None if None in constant else _mean(constant), None, None, CONSTANT),
    }


def _out_of_vocabulary(rows: Sequence[ClassVerdict]) -> Number:
    return proportion([one.out_of_vocabulary for one in rows], OUT_OF_VOCABULARY, higher_is_better=False)


def _mean(values: Sequence[float | None]) -> float | None:
    held = np.asarray([np.nan if value is None else value for value in values], dtype=np.float64)
    return float(macro(held)) if not np.isnan(held).all() else None
