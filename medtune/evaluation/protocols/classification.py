"""Classification by generated text (VITask): the prompt is the set's instruction, the answer is the text of a label.

:mod:`medtune.evaluation.classified` scores each set over its fixed classes, then macro over sets and micro over images.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from medtune.data.labels import PROTOCOL, classification_target, is_classification, label_text
from medtune.data.sample import Sample
from medtune.errors import DataError
from medtune.evaluation.classified import ClassVerdict, f1_comparison, score_classification, sets_of
from medtune.evaluation.display import ACCURACY_TITLES, Column, Display, Examples
from medtune.evaluation.labels import OUT_OF_VOCABULARY, read_labels
from medtune.evaluation.prediction import Prediction
from medtune.evaluation.protocols.base import (
    EvaluationProtocol,
    Pair,
    Query,
    Verdict,
    Vocabulary,
    query_frame,
    verdict_frame,
)
from medtune.evaluation.protocols.conversation import conversation, user_turn
from medtune.evaluation.result import Metric

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
        Column("label_accuracy_strict", "strictly"),
        Column("unread", "unread"),
        Column("quadratic_kappa", "κ"),
        Column("auc_macro", "AUC"),
    ),
    notes_help="Of a classification each set has a line: macro-F1 over its classes, and where they apply accuracy per "
    "label, the same with unread answers as wrong about every label (strictly), the share of unread answers, quadratic "
    "kappa (κ) and AUC.",
    titles=ACCURACY_TITLES,
    followed_of_sets=("accuracy", "f1_macro"),
    sets=(Column("accuracy", "accuracy"), Column("f1_macro", "macro-F1")),
    confusion="classes",
    radar=True,
    examples=Examples("Set {set}"),
)


class Classification(EvaluationProtocol):
    """The sample's user turn is the prompt; the answer must be the text of a class, or several joined by ``;``."""

    name: ClassVar[str] = PROTOCOL
    majority: ClassVar[Literal["required", "used", "none"]] = "used"
    probes = ("swapped", "no_image", "paraphrase")
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
        if (not sample.images and sample.meta.get("probe") != "no_image") or not prompt:
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
        return {"f1_macro": f1_comparison(pairs, vocabulary["sets"], base, resamples, seed)}


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
