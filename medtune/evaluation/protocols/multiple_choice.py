"""Multiple choice in the format of InstFree (section 4.2), answered freely or by the likelihood of the letters."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from medtune.data.multiple_choice import multiple_choice_answer, multiple_choice_prompt
from medtune.data.sample import Sample
from medtune.errors import DataError
from medtune.evaluation.display import Examples, accuracy_display
from medtune.evaluation.parsing import parse_letter
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


class MultipleChoice(EvaluationProtocol):
    """The paper's benchmark: the model writes an answer and the official parser reads it; an unread answer is wrong."""

    name: ClassVar[str] = "multiple_choice"
    default = True
    majority: ClassVar[Literal["required", "used", "none"]] = "required"
    probes = ("swapped", "no_image", "options", "paraphrase")
    retention = "share of multiple-choice answers in which the official parser reads the letter of an option"
    display = accuracy_display(
        "Multiple choice",
        rank=20,
        help="the paper's prompt and the official parser, an unread answer is wrong",
        confusion="values",
        radar=True,
        examples=Examples("What is the {attribute}?"),
        retention="letter format",
    )

    def plan(self, sample: Sample) -> list[Query]:
        """Return the one query of a question."""
        question, options, answer = question_text(sample)
        prompt = multiple_choice_prompt(question, options)
        return [make_query(self.name, sample, prompt, [multiple_choice_answer(options, answer)])]

    def judge(self, row: Prediction, vocabulary: Vocabulary) -> Verdict:
        """Read the letter. The answer is in format if the letter of an option could be read."""
        options = row.meta["options"]
        index = parse_letter(row.prediction, len(options))
        predicted = None if index is None else options[index]
        prior = vocabulary.majority[row.meta["attribute"]] == row.meta["answer"]
        return make_verdict(row, predicted, index is not None, prior=prior)

    def score(
        self, verdicts: Sequence[Verdict], vocabulary: Vocabulary, *, resamples: int, seed: int
    ) -> dict[str, Any] | None:
        """Score right and wrong answers (:func:`medtune.evaluation.scoring.score_protocol`)."""
        return score_protocol(verdicts, resamples=resamples, seed=seed)


class LetterLikelihood(EvaluationProtocol):
    """The same prompt; the answer is the option whose sentence ``The correct answer is X.`` is the most likely.

    It shows what the model knows even if it no longer writes the requested format, so it does not measure retention. In
    a tie the earlier option wins.
    """

    name: ClassVar[str] = "letter_likelihood"
    default = True
    majority: ClassVar[Literal["required", "used", "none"]] = "required"
    probes = ("swapped", "no_image", "options", "paraphrase")
    display = accuracy_display(
        "Letter likelihood",
        rank=30,
        help="the same prompt, the most likely letter counts, whatever the model would have written",
    )

    def plan(self, sample: Sample) -> list[Query]:
        """Return the one query of a question, with a continuation for each option."""
        question, options, answer = question_text(sample)
        prompt = multiple_choice_prompt(question, options)
        sentences = [multiple_choice_answer(options, option) for option in options]
        right = multiple_choice_answer(options, answer)
        return [make_query(self.name, sample, prompt, [right], continuations=sentences)]

    def judge(self, row: Prediction, vocabulary: Vocabulary) -> Verdict:
        """Compare ``meta["scores"]``, the log-probability of each option's sentence; a missing row is wrong.

        Raises:
            DataError: The row has no finite score for each option.
        """
        options, scores = row.meta["options"], row.meta.get("scores")
        prior = vocabulary.majority[row.meta["attribute"]] == row.meta["answer"]
        if row.meta.get("missing"):
            return make_verdict(row, None, False, prior=prior)
        numbers = isinstance(scores, list | tuple) and all(isinstance(score, int | float) for score in scores)
        if scores is None or not numbers or len(scores) != len(options) or any(math.isnan(score) for score in scores):
            raise DataError(
                f"prediction {row.id!r}: meta.scores must hold {len(options)} log-probabilities, one for each option."
            )
        best = max(range(len(options)), key=lambda index: scores[index])
        return make_verdict(row, options[best], True, prior=prior)

    def score(
        self, verdicts: Sequence[Verdict], vocabulary: Vocabulary, *, resamples: int, seed: int
    ) -> dict[str, Any] | None:
        """Score right and wrong answers (:func:`medtune.evaluation.scoring.score_protocol`)."""
        return score_protocol(verdicts, resamples=resamples, seed=seed)
