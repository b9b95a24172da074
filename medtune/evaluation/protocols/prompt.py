"""The row's own question, without a right answer: reports and answers for new images."""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from medtune.data.sample import Sample
from medtune.errors import ConfigError, DataError
from medtune.evaluation.display import Display
from medtune.evaluation.protocols.base import Query
from medtune.evaluation.protocols.conversation import conversation, user_turn
from medtune.evaluation.protocols.unscored import Unscored


class Prompt(Unscored):
    """Asks the sample's last user turn, after the turns before it. Nothing is compared with the answer."""

    name: ClassVar[str] = "prompt"
    display = Display("Own question", rank=90, help="the question of each row, without a right answer")

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
        return [self.query(sample, question)]


def with_question(sample: Sample, question: str) -> Sample:
    """Return a sample whose last user turn is ``question`` if it has no words of its own; its image tags are kept.

    A sample without a user turn, such as an image-report pair, gets one, and loses the report.
    """
    if user_turn(sample):
        return sample
    return replace(sample, messages=conversation(sample, user_turn(sample, question)))
