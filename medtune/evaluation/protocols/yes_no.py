"""Closed questions, ``Is the {attribute} {value}? Answer yes or no.``; for about half of them the answer is yes.

If the values of the attribute are yes and no, the question is ``Is there {attribute}?``, and the value is the answer.
"""

import re
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
from medtune.evaluation.protocols.conversation import user_turn
from medtune.evaluation.scoring import score_protocol

_PRESENCE = {"yes": True, "no": False}
_CLOSED = re.compile(r"(?:is|are|was|were|does|do|did|has|have|can|could)\b[^?]*\?$", re.IGNORECASE)


def right_answer(asked: str | None, value: str) -> str:
    """Return yes or no: the answer to a closed question about ``asked`` if the attribute's value is ``value``.

    Args:
        asked: The value in the question; None if the question is whether there is something, to which the answer is no
            if the value is no, and else yes (yes, mild).
        value: The right value, or a guess of it.
    """
    true = _presence(value) is not False if asked is None else asked == value
    return "yes" if true else "no"


def _presence(value: str) -> bool | None:
    """Return whether a value says that something is there (yes) or not (no); None for any other value."""
    return _PRESENCE.get(value.strip().casefold())


def _asked(options: Sequence[str], answer: str) -> str | None:
    """Return the value to ask for in place of yes or no: none, or the answer if it is a third one (uncertain)."""
    third = _presence(answer) is None and any(_presence(option) for option in options)
    return answer if third else None


def _closed(question: str) -> str:
    """Return a question that can be answered by yes or no; empty if it cannot."""
    return question if _CLOSED.match(question) and " or " not in question else ""


class YesNo(EvaluationProtocol):
    """One closed question for each question: with probability one half about the right value, else about another.

    The other value is drawn uniformly. Both random choices come from the seed and the question's id, so every model is
    asked the same, on true and on swapped images. Chance level is one half. The majority baseline answers yes if the
    value in the question is the training split's most frequent value.

    "Is the granularity no?" would be a double negative. So if the value drawn says that something is or is not there
    (yes, no), the question is ``Is there {attribute}?``, or the sample's own question if that is closed. It does
    not depend on the draw, and the share of yes among the right answers is that of the data.

    Args:
        seed: Seed of the random choices.
    """

    name: ClassVar[str] = "yes_no"
    default = True
    majority: ClassVar[Literal["required", "used", "none"]] = "required"
    probes = ("swapped", "no_image", "paraphrase")
    retention = "share of yes/no answers that begin with yes or no and do not say both"
    display = accuracy_display(
        "Yes / no",
        rank=40,
        help="one value is put up for yes or no; an attribute whose values are yes and no is asked as it is",
        # The value differs between questions, so the prompt is the heading.
        examples=Examples("What is the {attribute}?", heading="{prompt}"),
        retention="yes/no format",
    )

    def plan(self, sample: Sample) -> list[Query]:
        """Return the one query of a question."""
        meta = question_meta(sample)
        rng = sample_rng(self.seed, 0, 0, f"yes_no:{sample.id}")
        positive = rng.random() < 0.5
        value: str | None = (
            meta["answer"]
            if positive
            else rng.choice([option for option in meta["options"] if option != meta["answer"]])
        )
        if value is not None and _presence(value) is not None:
            value = _asked(meta["options"], meta["answer"])
        if value is None:
            question = _closed(user_turn(sample)) or f"Is there {meta['attribute']}?"
        else:
            question = f"Is the {meta['attribute']} {value}?"
        if sample.meta.get("probe") == "paraphrase":
            question = f"Please look at the image. {question}"
        right = right_answer(value, meta["answer"])
        question += " Answer yes or no."
        return [make_query(self.name, sample, question, [right], history=False, asked_value=value)]

    def judge(self, row: Prediction, vocabulary: Vocabulary) -> Verdict:
        """Read yes or no. The answer is in format if exactly one of them could be read."""
        meta = row.meta
        gold = right_answer(meta["asked_value"], meta["answer"])
        blind = right_answer(meta["asked_value"], vocabulary.majority[meta["attribute"]])
        predicted = parse_yes_no(row.prediction)
        return make_verdict(row, predicted, predicted is not None, gold=gold, chance=0.5, prior=blind == gold)

    def score(
        self, verdicts: Sequence[Verdict], vocabulary: Vocabulary, *, resamples: int, seed: int
    ) -> dict[str, Any] | None:
        """Score right and wrong answers (:func:`medtune.evaluation.scoring.score_protocol`)."""
        return score_protocol(verdicts, resamples=resamples, seed=seed)
