"""Classification by generated text (VITask): the prompt is the set's instruction, the answer is the text of a label.

Each set is scored over its fixed classes, then macro over sets and micro over images. scikit-learn computes the values;
:mod:`medtune.evaluation.resampled` computes the same statistics for many bootstrap resamples at once.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import numpy as np

from medtune.data.labels import PROTOCOL, LabelTask, classification_target, is_classification, label_text
from medtune.data.sample import Sample
from medtune.errors import DataError
from medtune.evaluation.baselines import CHANCE, MAJORITY, chance, majority
from medtune.evaluation.display import ACCURACY_TITLES, Column, Display, Examples
from medtune.evaluation.labels import OUT_OF_VOCABULARY, read_labels
from medtune.evaluation.metrics import macro, proportion
from medtune.evaluation.prediction import Prediction
from medtune.evaluation.protocols.base import (
    EvaluationProtocol,
    Pair,
    Query,
    Verdict,
    Vocabulary,
    conversation,
    query_frame,
    user_turn,
    verdict_frame,
)
from medtune.evaluation.resampled import LabelTable, f1_difference, intervals, points
from medtune.evaluation.result import Metric
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
STRAY = "share of answers that name no class, or something beside the classes they name; they are wrong"
_MACRO = Column("accuracy_macro", "Accuracy, mean over sets", "majority_macro", "chance_macro")
_DISPLAY = Display(
    "Classification",
    rank=60,
    help="answered with the text of a class, which must match but for case and punctuation",
    headline=(
        Column("accuracy_macro", "Classification", "majority_macro", "chance_macro"),
        Column("f1_macro", "Classification, macro-F1", "majority_f1_macro"),
    ),
    columns=(
        _MACRO,
        Column("accuracy_micro", "Accuracy, over images", "majority_micro", "chance_micro"),
        Column("f1_macro", ACCURACY_TITLES["f1_macro"]),
        Column("out_of_vocabulary", ACCURACY_TITLES["out_of_vocabulary"]),
    ),
    attribute=Column("accuracy", "accuracy", "majority", "chance"),
    notes=(
        Column("f1_macro", "F1"),
        Column("label_accuracy", "per label"),
        Column("quadratic_kappa", "κ"),
        Column("auc_macro", "AUC"),
    ),
    notes_help="Of a classification each set has a line: macro-F1 over its classes, and where they apply accuracy per "
    "label, quadratic kappa (κ) and AUC.",
    titles=ACCURACY_TITLES,
    followed_of_sets=("accuracy", "f1_macro"),
    sets=(Column("accuracy", "accuracy"), Column("f1_macro", "macro-F1")),
    confusion="classes",
    radar=True,
    examples=Examples("Set {set}"),
)


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


class Classification(EvaluationProtocol):
    """The sample's user turn is the prompt; the answer must be the text of a class, or several joined by ``;``."""

    name: ClassVar[str] = PROTOCOL
    majority: ClassVar[Literal["required", "used", "none"]] = "used"
    display = _DISPLAY

    def plan(self, sample: Sample) -> list[Query]:
        """Return the one query of a classification question.

        Raises:
            DataError: The sample is not a classification question, or it has no image or user turn.
        """
        if not is_classification(sample):
            raise DataError(
                f"question {sample.id!r} is no classification question; ask it by another protocol, or prepare a "
                "classification set."
            )
        target, prompt = classification_target(sample), user_turn(sample)
        if not sample.images or not prompt:
            raise DataError(f"question {sample.id!r}: a classification question needs an image and a user turn.")
        query_id, shown = query_frame(self.name, sample)
        meta = {"attribute": target.set, "answer": target.text, **shown, **target.to_meta()}
        # An image classifier must know the set of the question; the right answer is not passed on.
        about = {"set": target.set, "classes": list(target.classes)}
        asked = Sample(id=query_id, images=sample.images, messages=conversation(sample, prompt), meta=about)
        references = target.labels or (target.text,)
        return [Query(query_id, self.name, asked, (), references, meta)]

    def judge(self, row: Prediction, vocabulary: Vocabulary) -> ClassVerdict:
        """Read the labels. The answer is in format if it names classes and nothing else.

        Raises:
            DataError: ``meta.scores`` of the row does not hold one finite number for each class.
        """
        meta = row.meta
        classes, several = tuple(meta["classes"]), meta["task"] == "multi_label"
        indices, stray = read_labels(row.prediction, classes, several)
        names = [classes[index] for index in indices] + ([OUT_OF_VOCABULARY] if stray else [])
        prior = vocabulary.majority.get(meta["attribute"])
        gold = meta["label_index"] if several else [meta["label_index"]]
        return ClassVerdict(
            **verdict_frame(row),
            predicted=None if stray and not indices else label_text(names),
            in_format=not stray,
            chance=0.5 ** len(classes) if several else 1.0 / len(classes),
            prior=None if prior is None else prior == meta["answer"],
            kind=meta["task"],
            classes=classes,
            gold_indices=tuple(gold),
            read_indices=indices,
            out_of_vocabulary=stray,
            scores=_scores(row, len(classes)),
        )

    def score(
        self, verdicts: Sequence[Verdict], vocabulary: Vocabulary, *, resamples: int, seed: int
    ) -> dict[str, Any] | None:
        """Score each set over its fixed classes (:func:`score_classification`)."""
        return score_classification(verdicts, vocabulary.majority, resamples=resamples, seed=seed)

    def facts(self, verdicts: Sequence[Verdict]) -> dict[str, Any]:
        """Return task and classes of each set."""
        sets = sets_of(verdicts)
        return {"sets": sets} if sets else {}

    def mismatch(self, first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
        """Return a reason if the sets of two runs have different classes; empty otherwise."""
        return "" if first.get("sets") == second.get("sets") else "the sets have different classes"

    def compare(
        self,
        pairs: Mapping[int, Sequence[Pair]],
        vocabulary: Mapping[str, Any],
        base: str,
        *,
        resamples: int,
        seed: int,
    ) -> dict[str, Metric]:
        """Return the paired difference in macro-F1, mean over sets and training seeds."""
        return {"f1_macro": _f1_difference(pairs, vocabulary["sets"], base, resamples, seed)}


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
    )


def _of_set(rows: list[ClassVerdict], most_frequent: str | None, resamples: int, seed: int) -> Numbers:
    table = label_table(rows)
    images = [verdict.images for verdict in rows]
    ends = intervals({"": table}, images, resamples=resamples, seed=seed)
    numbers = {
        name: Metric(value, "fraction", True, len(rows), ends.get(name), f"{DEFINITIONS[name]}; {BOOTSTRAP}")
        for name, value in points(table).items()
    }
    return {
        "accuracy": proportion([verdict.correct for verdict in rows], EXACT if table.kind == "multi_label" else SHARE),
        **numbers,
        "out_of_vocabulary": _out_of_vocabulary(rows),
        "chance": chance(rows),
        "majority": majority(rows),
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

    def number(value: float | None, better: bool | None, ends: tuple[float, float] | None, text: str) -> Metric:
        return Metric(value, "fraction", better, len(rows), ends, f"{over} {text}")

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
        "f1_macro": number(_mean(f1), True, ends.get("f1_macro"), f"the {F1}; {BOOTSTRAP}"),
        "accuracy_micro": proportion([verdict.correct for verdict in rows], SHARE),
        "out_of_vocabulary": _out_of_vocabulary(rows),
        "chance_macro": number(mean(lambda group: chance(group).value), None, None, CHANCE),
        "chance_micro": chance(rows),
        "majority_macro": number(
            mean(lambda group: majority(group).value) if known else None,
            None,
            macro_interval(rows, priors, resamples, seed) if known else None,
            f"{MAJORITY}; {BOOTSTRAP}",
        ),
        "majority_micro": majority(rows),
        "majority_f1_macro": number(None if None in constant else _mean(constant), None, None, CONSTANT),
    }


def _out_of_vocabulary(rows: Sequence[ClassVerdict]) -> Metric:
    return proportion([verdict.out_of_vocabulary for verdict in rows], STRAY, higher_is_better=False)


def _mean(values: Sequence[float | None]) -> float | None:
    numbers = np.asarray([np.nan if value is None else value for value in values], dtype=np.float64)
    return float(macro(numbers)) if not np.isnan(numbers).all() else None


def _f1_difference(
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
    value, interval = f1_difference(sides[0], sides[1], images, resamples=resamples, seed=seed)
    text = f"mean over the {len(sets)} sets of macro-F1 minus that of {base}; interval by a bootstrap over images"
    return Metric(value, "difference of fractions", True, len(images), interval, text)


def _scores(row: Prediction, classes: int) -> tuple[float, ...] | None:
    scores = row.meta.get("scores")
    if scores is None:
        return None
    numbers = isinstance(scores, list | tuple) and all(
        isinstance(score, int | float) and not isinstance(score, bool) and math.isfinite(score) for score in scores
    )
    if not numbers or len(scores) != classes:
        raise DataError(f"prediction {row.id!r}: meta.scores must hold {classes} finite numbers, one for each class.")
    return tuple(float(score) for score in scores)
