"""Free questions with a right answer and no options: VQA-RAD, SLAKE, PathVQA and the like.

Open answers are scored by LLaVA-Med's word overlap, closed ones by its substrings and, next to that, strictly.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

from medtune.data.sample import Sample
from medtune.errors import DataError
from medtune.evaluation.display import Column, Display, Examples
from medtune.evaluation.llava_med import closed_hit, normalise_answer, open_scores
from medtune.evaluation.measures import DIFFERS, Measure, compare_measures, score_measures
from medtune.evaluation.metrics import proportion
from medtune.evaluation.parsing import parse_yes_no
from medtune.evaluation.prediction import Prediction
from medtune.evaluation.protocols.base import (
    EvaluationProtocol,
    Pair,
    Query,
    Topic,
    Verdict,
    Vocabulary,
    verdict_frame,
)
from medtune.evaluation.protocols.own_question import own_question
from medtune.evaluation.result import Metric
from medtune.evaluation.swapped import swap_images

OTHER = "*"
"""Read from an answer that is not the right one; its text is not kept."""
YES_NO = ("yes", "no")
AnswerType = Literal["open", "closed"]
_TYPES = ("open", "closed")
_WITHOUT_TYPE = "all"
_HAN = re.compile(r"([\u3400-\u4dbf\u4e00-\u9fff])")
_TEXT = "of words after LLaVA-Med's normalisation (evaluation code of LLaVA-Med v1)"
_CHINESE = "in Chinese each character is a word"

OPEN = (
    Measure(
        "open_recall",
        "fraction",
        True,
        f"mean over open questions of the recall {_TEXT}: words of the answer that occur in the right one, repeats "
        f"counted, divided by these and the words that the answer lacks; {_CHINESE}",
    ),
    Measure(
        "open_precision",
        "fraction",
        True,
        f"mean over open questions of the precision {_TEXT}: the share of the answer's words that occur in the right "
        f"one; {_CHINESE}",
    ),
    Measure(
        "open_f1",
        "fraction",
        True,
        f"mean over open questions of the harmonic mean of precision and recall {_TEXT}; {_CHINESE}",
    ),
)
CLOSED = (
    Measure(
        "closed_accuracy_strict",
        "fraction",
        True,
        "share of closed questions with the right answer, strictly: an answer to a yes/no question must begin with the "
        "word yes or no and not contain the other; any other answer must be the right one but for case, punctuation, "
        "articles and number words; unread answers are wrong",
    ),
    Measure(
        "closed_accuracy",
        "fraction",
        True,
        "share of closed questions that LLaVA-Med's evaluation code (v1) counts as right: the answer contains the "
        "letters of yes or no and those of the right answer, in words such as normal too; other right answers need "
        "such letters beside them; Chinese questions are left out",
    ),
    Measure(
        "closed_unread",
        "fraction",
        False,
        "share of closed questions whose answer cannot be read strictly: neither yes nor no at its beginning, both of "
        "them, or no words",
    ),
)
_MEASURES = {measure.name: measure for measure in (*OPEN, *CLOSED)}
_TITLES = {
    "open_recall": "Open, recall",
    "open_precision": "Open, precision",
    "open_f1": "Open, F1",
    "closed_accuracy_strict": "Closed, accuracy (strict)",
    "closed_accuracy": "Closed, accuracy (LLaVA-Med)",
    "closed_unread": "Closed, unread",
}
_DISPLAY = Display(
    "VQA",
    rank=80,
    help="a free question with a right answer and no options; open answers by shared words, closed ones by yes and no",
    headline=(
        Column("open_recall_micro", "VQA, open recall"),
        Column("open_f1_micro", "VQA, open F1"),
        Column("closed_accuracy_strict_micro", "VQA, closed, strict"),
        Column("closed_accuracy_micro", "VQA, closed, LLaVA-Med"),
    ),
    columns=tuple(Column(f"{name}_micro", title) for name, title in _TITLES.items()),
    attribute=Column("open_recall", "open recall"),
    notes=(
        Column("open_f1", "F1"),
        Column("closed_accuracy_strict", "closed"),
        Column("closed_accuracy", "closed, LLaVA-Med"),
    ),
    notes_help="Of a VQA question type the large number is the open recall; F1 of open and accuracy of closed "
    "questions, strict and as LLaVA-Med counts, are below it.",
    titles={f"{name}_macro": f"{title}, mean over question types" for name, title in _TITLES.items()},
    followed_of_sets=("open_recall", "closed_accuracy_strict"),
    paired="measure:open_recall",
    examples=Examples("{prompt}", mark="none"),
)


class Vqa(EvaluationProtocol):
    """The sample's user turn is asked as it is.

    The right answer is ``meta["answer"]``, or the assistant's turn where that is absent. ``meta["answer_type"]`` is
    ``open`` or ``closed`` (default: closed if the right answer is yes or no), ``meta["attribute"]`` the type of the
    question that numbers are also given for, ``meta["language"]`` ``en`` (default) or ``zh``.
    """

    name: ClassVar[str] = "vqa"
    display = _DISPLAY
    compares_every_pair: ClassVar[bool] = True

    @staticmethod
    def topic(sample: Sample) -> Topic:
        """Return question type and right answer; there are no options."""
        return Topic(_question_type(sample), free_answer(sample), ())

    @staticmethod
    def other_images(samples: Sequence[Sample], seed: int) -> list[Sample]:
        """Return the questions on images of other questions of their type, with another right answer if possible."""
        return swap_images(samples, seed, about=Vqa.topic)

    def plan(self, sample: Sample) -> list[Query]:
        """Return the one query of a question.

        Raises:
            DataError: The question has no right answer, no text or no image, or its ``meta`` holds an unknown value.
        """
        answer = free_answer(sample)
        meta = {
            "attribute": _question_type(sample),
            "answer": answer,
            "answer_type": answer_type(sample),
            "language": _language(sample),
        }
        return [own_question(self.name, sample, (answer,), meta)]

    def judge(self, row: Prediction, vocabulary: Vocabulary) -> Verdict:
        """Score an open answer by shared words; read a closed one strictly, and as LLaVA-Med reads it."""
        answer, meta = row.prediction, row.meta
        chinese = meta["language"] == "zh"
        words = spaced if chinese else normalise_answer
        gold = words(meta["answer"])
        if meta["answer_type"] == "open":
            text, right = (spaced(answer), gold) if chinese else (answer, meta["answer"])
            f1, precision, recall = open_scores(text, right)
            measures = {"open_recall": recall, "open_precision": precision, "open_f1": f1}
            predicted = _same_or_other(words(answer), gold)
        else:
            predicted = parse_yes_no(answer) if gold in YES_NO else _same_or_other(words(answer), gold)
            measures = {"closed_accuracy_strict": float(predicted == gold), "closed_unread": float(predicted is None)}
            if not chinese:
                measures["closed_accuracy"] = float(closed_hit(answer, meta["answer"]))
        frame = {**verdict_frame(row), "gold": gold}
        return Verdict(**frame, predicted=predicted, in_format=predicted is not None, measures=measures)

    def score(
        self, verdicts: Sequence[Verdict], vocabulary: Vocabulary, *, resamples: int, seed: int
    ) -> dict[str, Any] | None:
        """Score open and closed questions apart, over all questions and per question type."""
        parts = [
            score_measures(rows, measures, resamples=resamples, seed=seed)
            for rows, measures in ((_of_kind(verdicts, OPEN), OPEN), (_of_kind(verdicts, CLOSED), CLOSED))
        ]
        types = sorted({verdict.attribute for verdict in verdicts if not verdict.swapped})
        return {
            "overall": _joined(part["overall"] for part in parts),
            "attributes": {
                name: {**_none(), **_joined(part["attributes"].get(name, {}) for part in parts)} for name in types
            },
            "swapped": _swapped(parts, verdicts),
        }

    def facts(self, verdicts: Sequence[Verdict]) -> dict[str, Any]:
        """Return the number of open and of closed questions."""
        true = [verdict for verdict in verdicts if not verdict.swapped]
        return {"vqa": {"open": len(_of_kind(true, OPEN)), "closed": len(_of_kind(true, CLOSED))}}

    def compare(
        self,
        pairs: Mapping[int, Sequence[Pair]],
        vocabulary: Mapping[str, Any],
        base: str,
        *,
        resamples: int,
        seed: int,
    ) -> dict[str, Metric]:
        """Return the paired differences of the F1 of open questions and of both accuracies of closed ones."""
        compared = [replace(_MEASURES[name], of_set=_mean_of(name)) for name in _MEASURES if name in _COMPARED]
        return compare_measures(pairs, compared, base, resamples=resamples, seed=seed)


_COMPARED = ("open_f1", "closed_accuracy_strict", "closed_accuracy")


def free_answer(sample: Sample) -> str:
    """Return the right answer of a question: ``meta["answer"]``, or the first turn of the assistant.

    Raises:
        DataError: There is neither.
    """
    given = sample.meta.get("answer")
    turns = [message.content for message in sample.messages if message.role == "assistant"]
    answer = turns[0] if given is None and turns else given
    if not isinstance(answer, str) or not answer.strip():
        raise DataError(f"question {sample.id!r}: meta needs a text 'answer', or the sample an assistant turn.")
    return answer


def answer_type(sample: Sample) -> AnswerType:
    """Return whether a question is open or closed; without ``answer_type``, yes and no are closed answers.

    Raises:
        DataError: ``answer_type`` is another value.
    """
    given = sample.meta.get("answer_type")
    if given is None:
        return "closed" if normalise_answer(free_answer(sample)) in YES_NO else "open"
    if given not in _TYPES:
        raise DataError(f"question {sample.id!r}: meta.answer_type must be 'open' or 'closed'.")
    return "open" if given == "open" else "closed"


def spaced(text: str) -> str:
    """Return Chinese text as words: case folded, without punctuation, a space around each Chinese character."""
    plain = "".join(" " if unicodedata.category(letter)[0] in "PZ" else letter for letter in text.casefold())
    return " ".join(_HAN.sub(r" \1 ", plain).split())


def _question_type(sample: Sample) -> str:
    given = sample.meta.get("attribute", _WITHOUT_TYPE)
    if not isinstance(given, str) or not given.strip():
        raise DataError(f"question {sample.id!r}: meta.attribute, the type of the question, must be a text.")
    return given


def _language(sample: Sample) -> str:
    language = sample.meta.get("language", "en")
    if language not in ("en", "zh"):
        raise DataError(f"question {sample.id!r}: meta.language must be 'en' or 'zh'.")
    return str(language)


def _same_or_other(said: str, gold: str) -> str | None:
    """Return the right answer if it was given, a mark for another one, None for no words."""
    return gold if said and said == gold else OTHER if said else None


def _of_kind(verdicts: Sequence[Verdict], measures: Sequence[Measure]) -> list[Verdict]:
    return [verdict for verdict in verdicts if measures[0].name in verdict.measures]


def _joined(parts: Any) -> dict[str, Metric]:
    """Join the numbers of open and closed questions; their unread answers are a measure of closed ones."""
    return {key: number for part in parts for key, number in part.items() if key != "unread"}


def _none() -> dict[str, Metric]:
    """Return the numbers of a question type without questions."""
    return {
        name: Metric(None, measure.unit, measure.higher_is_better, 0, None, measure.definition)
        for name, measure in _MEASURES.items()
    }


def _swapped(parts: Sequence[Mapping[str, Any]], verdicts: Sequence[Verdict]) -> dict[str, Metric] | None:
    """Join the numbers on swapped images; the cost of the swap is that of open recall and of strict accuracy."""
    on_open, on_closed = (part["swapped"] or {} for part in parts)
    if not on_open and not on_closed:
        return None
    renamed = {"closed_drop_macro" if key == "drop_macro" else key: number for key, number in on_closed.items()}
    shown = [verdict.shown_differs for verdict in verdicts if verdict.swapped]
    return {**_joined((renamed, on_open)), "answer_differs": proportion(shown, DIFFERS, higher_is_better=None)}


def _mean_of(name: str) -> Any:
    def mean(verdicts: Sequence[Verdict]) -> float | None:
        values = [verdict.measures[name] for verdict in verdicts if name in verdict.measures]
        return sum(values) / len(values) if values else None

    return mean
