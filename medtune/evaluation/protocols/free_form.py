"""Free-form prompts without a right answer (InstFree, Fig. 8): the report shows the models' answers side by side."""

from typing import ClassVar

from medtune.data.sample import Sample
from medtune.errors import DataError
from medtune.evaluation.display import Display
from medtune.evaluation.protocols.base import Query
from medtune.evaluation.protocols.conversation import user_turn
from medtune.evaluation.protocols.unscored import Unscored


class FreeForm(Unscored):
    """Asks each row's last user turn as it is; other images and other orders are never asked."""

    name: ClassVar[str] = "free_form"
    display = Display(
        "Free-form prompts",
        rank=100,
        side_by_side="Answers to prompts without a right answer. Nothing is scored; read them.",
    )

    def plan(self, sample: Sample) -> list[Query]:
        """Return the query of a row; the row's answer, if it has one, is neither shown nor used.

        Raises:
            DataError: The row has no words to ask.
        """
        prompt = user_turn(sample)
        if not prompt:
            raise DataError(f"question {sample.id!r}: free_form needs a user turn with words.")
        return [self.query(sample, prompt)]
