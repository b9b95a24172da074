"""Where the scores of generated reports are plugged into the protocol ``flare``."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from medtune.evaluation.prediction import Prediction
from medtune.evaluation.protocols.base import Pair, Verdict
from medtune.evaluation.reports.scores import score_counts
from medtune.evaluation.reports.verdicts import differences_of, measures_of, table_of
from medtune.evaluation.result import Metric
from medtune.evaluation.scoring import share_of

_PREFIX = "report_"


@dataclass(frozen=True)
class ReportScorer:
    """A way to score reports.

    Attributes:
        measures: returns the numbers of one answer by name, for ``Verdict.measures``
            and ``verdicts.csv``; the right report is ``row.meta["answer"]``.
        score: returns the numbers of such verdicts by name, with intervals; gets the number of bootstrap resamples
            and the seed.
        compare: returns paired differences by name, as ``EvaluationProtocol.compare``
            does; None compares nothing.
    """

    measures: Callable[[Prediction], Mapping[str, float]]
    score: Callable[[Sequence[Verdict], int, int], Mapping[str, Metric]]
    compare: Callable[[Mapping[int, Sequence[Pair]], str, int, int], Mapping[str, Metric]] | None = None


def _score(verdicts: Sequence[Verdict], resamples: int, seed: int) -> dict[str, Metric]:
    numbers = score_counts(table_of(verdicts), resamples=resamples, seed=seed)
    empty = share_of(
        verdicts, lambda verdict: verdict.predicted is None, "share of empty reports", resamples, seed, False
    )
    return {**{_PREFIX + name: number for name, number in numbers.items()}, "report_generation_unread": empty}


def _compare(pairs: Mapping[int, Sequence[Pair]], base: str, resamples: int, seed: int) -> dict[str, Metric]:
    asked = {
        of: [pair for pair in found if pair[0]["attribute"].endswith("/report_generation")]
        for of, found in pairs.items()
    }
    found = differences_of(asked, base, resamples=resamples, seed=seed)
    return {_PREFIX + name: number for name, number in found.items()}


REPORT_SCORERS: dict[str, ReportScorer] = {"reports": ReportScorer(measures_of, _score, _compare)}
"""Name to scorer: ROUGE-L, BLEU, findings, and GREEN where the green recipe has graded. Without any, reports are asked
and not scored, and the results say so."""
