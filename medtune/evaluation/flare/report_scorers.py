"""Where the scores of generated reports are plugged into the protocol ``flare``."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from medtune.evaluation.prediction import Prediction
from medtune.evaluation.protocols.base import Pair, Verdict
from medtune.evaluation.result import Metric


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


REPORT_SCORERS: dict[str, ReportScorer] = {}
"""Name to scorer. Without any, reports are asked and not scored, and the results say so."""
