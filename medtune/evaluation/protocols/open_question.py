"""The open question: ``What is the {attribute}?``, answered in words."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from medtune.data.sample import Sample
from medtune.evaluation.display import Examples, accuracy_display
from medtune.evaluation.parsing import parse_value
from medtune.evaluation.prediction import Prediction
from medtune.evaluation.protocols.base import (
    EvaluationProtocol,
    Query,
    Verdict,
    Vocabulary,
    make_query,
    make_verdict,
    question_text,
)
from medtune.evaluation.scoring import score_protocol
from medtune.evaluation.wording import is_report


class OpenQuestion(EvaluationProtocol):
    """The right answer names the right value; :func:`medtune.evaluation.parsing.parse_value` says how it is read."""

    name: ClassVar[str] = "open"
    default = True
    majority: ClassVar[Literal["required", "used", "none"]] = "required"
    probes = ("swapped", "no_image", "paraphrase")
    retention = "share of open answers that name a value of the attribute asked for and are no recited report"
    display = accuracy_display(
        "Open question",
        rank=10,
        help="answered in words, right when the right value is named",
        confusion="values",
        radar=True,
        examples=Examples("What is the {attribute}?"),
        retention="open question answered",
    )

    def plan(self, sample: Sample) -> list[Query]:
        """Return the one query of a question."""
        question, _, answer = question_text(sample)
        return [make_query(self.name, sample, question, [answer])]

    def judge(self, row: Prediction, vocabulary: Vocabulary) -> Verdict:
        """Read the value. The answer is in format if it names a value and is not a recited report."""
        attribute, options = row.meta["attribute"], row.meta["options"]
        index = parse_value(row.prediction, attribute, options, vocabulary.attributes)
        predicted = None if index is None else options[index]
        answers = index is not None and not is_report(row.prediction, vocabulary.terms)
        return make_verdict(row, predicted, answers, prior=vocabulary.majority[attribute] == row.meta["answer"])

    def score(
        self, verdicts: Sequence[Verdict], vocabulary: Vocabulary, *, resamples: int, seed: int
    ) -> dict[str, Any] | None:
        """Score right and wrong answers (:func:`medtune.evaluation.scoring.score_protocol`)."""
        return score_protocol(verdicts, resamples=resamples, seed=seed)
