"""Closed questions, ``Is the {attribute} {value}? Answer yes or no.``; for about half of them the answer is yes."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from medtune.data.randomness import sample_rng
from medtune.data.sample import Sample
from medtune.evaluation.display import Examples, accuracy_display
from medtune.evaluation.parsing import parse_yes_no
from medtune.evaluation.prediction import Prediction
from medtune.evaluation.protocols.base import (
    EvaluationProtocol,
    Query,
    Verdict,
    Vocabulary,
    make_query,
    make_verdict,
    question_meta,
)
from medtune.evaluation.scoring import score_protocol


class YesNo(EvaluationProtocol):
    """One closed question for each question: with probability one half about the right value, else about another.

    The other value is drawn uniformly. Both random choices come from the seed and the question's id, so every model is
    asked the same, on true and on swapped images. Chance level is one half. The majority baseline answers yes if the
    value in the question is the training split's most frequent value.

    Args:
        seed: Seed of the random choices.
    """

    name: ClassVar[str] = "yes_no"
    default = True
    majority: ClassVar[Literal["required", "used", "none"]] = "required"
    retention = "share of yes/no answers that begin with yes or no and do not say both"
    display = accuracy_display(
        "Yes / no",
        rank=40,
        help="one value is put up for yes or no",
        # The value differs between questions, so the prompt is the heading.
        examples=Examples("What is the {attribute}?", heading="{prompt}"),
        retention="yes/no format",
    )

    def plan(self, sample: Sample) -> list[Query]:
        """Return the one query of a question."""
        meta = question_meta(sample)
        rng = sample_rng(self.seed, 0, 0, f"yes_no:{sample.id}")
        positive = rng.random() < 0.5
        value = (
            meta["answer"]
            if positive
            else rng.choice([option for option in meta["options"] if option != meta["answer"]])
        )
        prompt = f"Is the {meta['attribute']} {value}? Answer yes or no."
        return [make_query(self.name, sample, prompt, ["yes" if positive else "no"], history=False, asked_value=value)]

    def judge(self, row: Prediction, vocabulary: Vocabulary) -> Verdict:
        """Read yes or no. The answer is in format if exactly one of them could be read."""
        meta = row.meta
        gold = "yes" if meta["asked_value"] == meta["answer"] else "no"
        blind = "yes" if meta["asked_value"] == vocabulary.majority[meta["attribute"]] else "no"
        predicted = parse_yes_no(row.prediction)
        return make_verdict(row, predicted, predicted is not None, gold=gold, chance=0.5, prior=blind == gold)

    def score(
        self, verdicts: Sequence[Verdict], vocabulary: Vocabulary, *, resamples: int, seed: int
    ) -> dict[str, Any] | None:
        """Score right and wrong answers (:func:`medtune.evaluation.scoring.score_protocol`)."""
        return score_protocol(verdicts, resamples=resamples, seed=seed)
