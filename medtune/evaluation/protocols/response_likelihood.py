"""How likely the right response is, given the question and an image (VITask, section 4 and Fig. 4)."""

import math
from dataclasses import dataclass
from typing import ClassVar

from medtune.data.multiple_choice import open_question
from medtune.data.sample import Message, Sample
from medtune.errors import DataError
from medtune.evaluation.prediction import Prediction
from medtune.evaluation.protocols.base import Query, Verdict, Vocabulary, query_frame, topic, user_turn, verdict_frame

ROUNDING = 1e-3
"""Nats by which a response's log-probability may lie above 0."""


@dataclass(frozen=True)
class LikelihoodVerdict(Verdict):
    """The right response under one image.

    Args:
        log_likelihood: Mean log-probability of the response's tokens, in nats; None where the row is missing.
    """

    log_likelihood: float | None = None


class ResponseLikelihood:
    """The sample's user turn, continued by the right response; nothing is generated.

    It is asked twice: on the question's image, and on an image of the same set whose right response is another one
    (:func:`medtune.evaluation.swapped.contrast_images`).
    """

    name: ClassVar[str] = "response_likelihood"

    def requests(self, sample: Sample) -> list[Query]:
        """Return the one query of a question, with the right response as its only continuation.

        Raises:
            DataError: The question has no image, or its ``meta`` does not say what is right.
        """
        about = topic(sample)
        if not sample.images:
            raise DataError(f"question {sample.id!r}: a question needs an image.")
        query_id, shown = query_frame(self.name, sample)
        meta = {"attribute": about.attribute, "answer": about.answer, "options": list(about.values), **shown}
        prompt = user_turn(sample) or open_question(about.attribute)
        asked = Sample(id=query_id, images=sample.images, messages=(Message("user", prompt),), meta={})
        return [Query(query_id, self.name, asked, (about.answer,), (about.answer,), meta)]

    def judge(self, row: Prediction, vocabulary: Vocabulary) -> LikelihoodVerdict:
        """Divide ``meta["scores"][0]`` by the number of tokens, ``meta["score_tokens"][0]``.

        The verdict is never right or wrong: two of them make a ranking.

        Raises:
            DataError: The row does not hold the two numbers.
        """
        return LikelihoodVerdict(
            **verdict_frame(row),
            predicted=None,
            in_format=False,
            chance=0.0,
            prior=None,
            log_likelihood=None if row.meta.get("missing") else _mean(row),
        )


def _mean(row: Prediction) -> float:
    score, tokens = (_only_number(row.meta.get(name)) for name in ("scores", "score_tokens"))
    if score is None or tokens is None:
        raise DataError(
            f"prediction {row.id!r}: meta.scores must hold the log-probability of the right response, and "
            "meta.score_tokens the number of its tokens; predict again."
        )
    if score > ROUNDING or tokens < 1:
        raise DataError(
            f"prediction {row.id!r}: a log-probability is at most 0 and a response has tokens, not {score} of {tokens}."
        )
    return min(0.0, score / tokens)


def _only_number(values: object) -> float | None:
    if not isinstance(values, list | tuple) or len(values) != 1 or isinstance(values[0], bool):
        return None
    return float(values[0]) if isinstance(values[0], int | float) and math.isfinite(values[0]) else None
