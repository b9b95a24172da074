"""The row's own question, without a right answer: reports and answers for new images."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from medtune.data.sample import Sample
from medtune.errors import ConfigError, DataError
from medtune.evaluation.display import Display
from medtune.evaluation.prediction import Prediction
from medtune.evaluation.protocols.base import EvaluationProtocol, Query, Verdict, Vocabulary, query_frame, verdict_frame
from medtune.evaluation.protocols.conversation import conversation, user_turn


@dataclass(frozen=True)
class Unjudged(Verdict):
    """An answer without a right one; it has no row in ``verdicts.csv``."""

    tabulated: ClassVar[bool] = False


class Prompt(EvaluationProtocol):
    """Asks the sample's last user turn, after the turns before it. Nothing is compared with the answer."""

    name: ClassVar[str] = "prompt"
    display = Display("Own question", rank=90, help="the question of each row, without a right answer")

    @staticmethod
    def topic(sample: Sample) -> None:
        """Return None: no attribute or answer is known."""
        return None

    @staticmethod
    def other_images(samples: Sequence[Sample], seed: int) -> list[Sample]:
        """Refuse to swap images.

        Raises:
            ConfigError: Always; without a right answer two images cannot be compared.
        """
        raise ConfigError(
            "protocol 'prompt' has no right answers to compare on swapped images; leave it out of 'swapped'."
        )

    def plan(self, sample: Sample) -> list[Query]:
        """Return the one query of a sample.

        Raises:
            DataError: The sample has no question, or no image.
        """
        question = user_turn(sample)
        if not question:
            raise DataError(f"row {sample.id!r} has no question; give one for all such rows: question='...'.")
        if not sample.images:
            raise DataError(f"row {sample.id!r} has no image; a question needs one.")
        query_id, shown = query_frame(self.name, sample)
        asked = Sample(id=query_id, images=sample.images, messages=conversation(sample, question), meta={})
        return [Query(query_id, self.name, asked, (), (), {"attribute": "", "answer": "", **shown})]

    def judge(self, row: Prediction, vocabulary: Vocabulary) -> Unjudged:
        """Return a verdict that is neither right nor wrong."""
        return Unjudged(**verdict_frame(row), predicted=None, in_format=False)

    def score(
        self, verdicts: Sequence[Verdict], vocabulary: Vocabulary, *, resamples: int, seed: int
    ) -> dict[str, Any] | None:
        """Return None: there is no right answer."""
        return None


def with_question(sample: Sample, question: str) -> Sample:
    """Return a sample whose last user turn is ``question`` if it has no words of its own; its image tags are kept.

    A sample without a user turn, such as an image-report pair, gets one, and loses the report.
    """
    if user_turn(sample):
        return sample
    return replace(sample, messages=conversation(sample, user_turn(sample, question)))
