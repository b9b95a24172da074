"""A served model that says which of two answers is better, given the right one (BioMed-VITAL, Sec. 4.4 and Fig. 10).

The reply is a verdict, [[A]], [[B]] or [[C]] for a tie, and not scores. Both orders are asked; each gives the preferred
answer one point, and a tie half a point to both.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from medtune.judges.model_judge import ModelJudge
from medtune.judges.parsing import ReadScores
from medtune.judges.prompts import JudgePrompt, read_prompt
from medtune.judges.verdicts import read_verdict


@dataclass(frozen=True)
class VerdictJudge(ModelJudge):
    """A judge whose scores are points: those of the two answers add up to 1.

    Attributes:
        prompt: ``verdict-v1`` with images, ``verdict_text-v1`` without, ``verdict_short-v1`` for very small models, or
            path of a ``.txt`` file. ``{reference}`` in it is the right answer.
    """

    name: ClassVar[str] = "verdict"
    prompt: str = "verdict-v1"

    @cached_property
    def _read(self) -> JudgePrompt:
        return read_prompt(self.prompt, scored=False)

    def _scores(self, text: str | None, finish_reason: str) -> ReadScores:
        """Read the verdict in a reply."""
        return read_verdict(text, finish_reason)
