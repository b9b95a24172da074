"""Two models on the same questions: McNemar's exact test on the questions that only one of them gets right."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scipy.stats import binomtest

from medtune.errors import DataError

MCNEMAR = (
    "McNemar's exact test (two-sided binomial, one half) on the questions that only one of the two models gets right; "
    "it takes questions as independent, which several on one image are not; no correction for several comparisons"
)


@dataclass(frozen=True)
class McNemar:
    """Agreement of two models, and the p value of the hypothesis that they are right equally often.

    Args:
        both_right: Number of questions that both models get right.
        only_first: Number of questions that only the first model gets right.
        only_second: Number of questions that only the second model gets right.
        both_wrong: Number of questions that neither model gets right.
        p_value: Two-sided p value; 1.0 if they never disagree.
    """

    both_right: int
    only_first: int
    only_second: int
    both_wrong: int
    p_value: float

    @property
    def n(self) -> int:
        """Number of questions that both models were asked."""
        return self.both_right + self.only_first + self.only_second + self.both_wrong

    def to_dict(self) -> dict[str, Any]:
        """Return the counts and the p value as plain JSON values, with the test's definition."""
        return {**asdict(self), "n": self.n, "definition": MCNEMAR}


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> McNemar:
    """Test whether two models are right equally often (McNemar 1947), by the exact binomial at every sample size.

    Args:
        first: Whether the first model is right, one entry per question.
        second: The same for the second model, on the same questions in the same order.

    Raises:
        DataError: The two numbers of questions differ.
    """
    if len(first) != len(second):
        raise DataError(
            f"{len(first)} answers cannot be paired with {len(second)}; compare two models on the same questions."
        )
    pairs = [(bool(first_right), bool(second_right)) for first_right, second_right in zip(first, second, strict=True)]
    only_first, only_second = pairs.count((True, False)), pairs.count((False, True))
    discordant = only_first + only_second
    p_value = float(binomtest(only_first, discordant, 0.5).pvalue) if discordant else 1.0
    return McNemar(pairs.count((True, True)), only_first, only_second, pairs.count((False, False)), p_value)
