"""Classification by generated text (VITask): the set's own instruction, answered with a label's text."""

import math
from dataclasses import dataclass
from typing import ClassVar

from medtune.data.labels import PROTOCOL, LabelTask, classification_target, is_classification, label_text
from medtune.data.sample import Message, Sample
from medtune.errors import DataError
from medtune.evaluation.labels import OUT_OF_VOCABULARY, read_labels
from medtune.evaluation.prediction import Prediction
from medtune.evaluation.protocols.base import Query, Verdict, Vocabulary, query_frame, user_turn, verdict_frame


@dataclass(frozen=True)
class ClassVerdict(Verdict):
    """One classified image.

    Args:
        kind: ``multi_class``, ``multi_label`` or ``ordinal``.
        classes: All classes of the set, by index.
        gold_indices: The right ones.
        read_indices: Those that the answer names.
        out_of_vocabulary: Whether the answer, or a part of it, names no class.
        scores: One number for each class, the larger the likelier; None where the row carries none.
    """

    kind: LabelTask = "multi_class"
    classes: tuple[str, ...] = ()
    gold_indices: tuple[int, ...] = ()
    read_indices: tuple[int, ...] = ()
    out_of_vocabulary: bool = False
    scores: tuple[float, ...] | None = None


class Classification:
    """The sample's user turn is the prompt; the answer must be the text of a class, or of several joined by ``;``."""

    name: ClassVar[str] = PROTOCOL

    def requests(self, sample: Sample) -> list[Query]:
        """Return the one query of a classification question.

        Raises:
            DataError: The sample is no classification question, or has no image or user turn.
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
        # An image classifier must know which set it is asked about; the right answer stays out.
        about = {"set": target.set, "classes": list(target.classes)}
        asked = Sample(id=query_id, images=sample.images, messages=(Message("user", prompt),), meta=about)
        references = target.labels or (target.text,)
        return [Query(query_id, self.name, asked, (), references, meta)]

    def judge(self, row: Prediction, vocabulary: Vocabulary) -> ClassVerdict:
        """Read the labels. In format means that the answer names classes and nothing else.

        Raises:
            DataError: The row's ``meta.scores`` are not one finite number for each class.
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


def _scores(row: Prediction, classes: int) -> tuple[float, ...] | None:
    scores = row.meta.get("scores")
    if scores is None:
        return None
    numbers = isinstance(scores, list | tuple) and all(
        isinstance(one, int | float) and not isinstance(one, bool) and math.isfinite(one) for one in scores
    )
    if not numbers or len(scores) != classes:
        raise DataError(f"prediction {row.id!r}: meta.scores must hold {classes} finite numbers, one for each class.")
    return tuple(float(one) for one in scores)
