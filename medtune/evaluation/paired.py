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
    """How often two models agree, and how surprising their disagreement would be were they equally good.

    Args:
        both_right: Questions that both models get right.
        only_first: Questions that the first alone gets right.
        only_second: Questions that the second alone gets right.
        both_wrong: Questions that neither gets right.
        p_value: Two-sided; 1.0 where they never disagree.
    """

    both_right: int
    only_first: int
    only_second: int
    both_wrong: int
    p_value: float

    @property
    def n(self) -> int:
        """Questions that both were asked."""
        return self.both_right + self.only_first + self.only_second + self.both_wrong

    def to_dict(self) -> dict[str, Any]:
        """Return the counts and the p value as plain JSON values, with the test's definition."""
        return {**asdict(self), "n": self.n, "definition": MCNEMAR}


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> McNemar:
    """Test whether two models are right equally often (McNemar 1947), by the exact binomial at every sample size.

    Args:
        first: Whether the first model is right, one entry a question.
        second: The same of the second model, on the same questions in the same order.

    Raises:
        DataError: The two do not hold the same number of questions.
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
