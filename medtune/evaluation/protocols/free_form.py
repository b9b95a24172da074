"""Free-form prompts without a right answer (InstFree, Fig. 8): the report shows the models' answers side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from medtune.data.sample import Sample
from medtune.errors import DataError
from medtune.evaluation.display import Display
from medtune.evaluation.prediction import Prediction
from medtune.evaluation.protocols.base import (
    EvaluationProtocol,
    Query,
    Topic,
    Verdict,
    Vocabulary,
    conversation,
    query_frame,
    user_turn,
    verdict_frame,
)


@dataclass(frozen=True)
class FreeFormVerdict(Verdict):
    """An answer that nothing is said about."""

    tabulated: ClassVar[bool] = False


class FreeForm(EvaluationProtocol):
    """Asks each row's last user turn as it is; other images and other orders are never asked."""

    name: ClassVar[str] = "free_form"
    display = Display(
        "Free-form prompts",
        rank=100,
        side_by_side="Answers to prompts without a right answer. Nothing is scored; read them.",
    )

    @staticmethod
    def topic(sample: Sample) -> Topic | None:
        """Return None: a prompt is about no attribute."""
        return None

    def plan(self, sample: Sample) -> list[Query]:
        """Return the query of a row; the row's answer, if it has one, is neither shown nor used.

        Raises:
            DataError: The row has no words to ask.
        """
        prompt = user_turn(sample)
        if not prompt:
            raise DataError(f"question {sample.id!r}: free_form needs a user turn with words.")
        query_id, shown = query_frame(self.name, sample)
        asked = Sample(id=query_id, images=sample.images, messages=conversation(sample, prompt), meta={})
        return [Query(query_id, self.name, asked, (), (), {"attribute": "", "answer": "", **shown})]

    def judge(self, row: Prediction, vocabulary: Vocabulary) -> Verdict:
        """Return a verdict that counts for nothing."""
        return FreeFormVerdict(**{**verdict_frame(row), "predicted": None, "in_format": False})

    def score(
        self, verdicts: Sequence[Verdict], vocabulary: Vocabulary, *, resamples: int, seed: int
    ) -> dict[str, Any] | None:
        """Return None: there is no score."""
        return None
