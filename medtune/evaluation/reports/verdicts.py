"""Verdicts on generated reports as the matrix that is scored, for every protocol that asks for reports."""

from collections.abc import Mapping, Sequence

import numpy as np

from medtune.evaluation.measures import verdict_of
from medtune.evaluation.prediction import Prediction
from medtune.evaluation.protocols.base import Pair, Verdict
from medtune.evaluation.reports.green import GreenCounts
from medtune.evaluation.reports.scores import (
    COLUMNS,
    DEFINITIONS,
    Counts,
    Numbers,
    counts_row,
    differences,
    report_measures,
)


def measures_of(row: Prediction) -> dict[str, float]:
    """Return the numbers of one generated report: word counts, and GREEN from ``meta["green"]`` if it was graded.

    Raises:
        DataError: ``meta.green`` of the row holds no counts.
    """
    given = row.meta.get("green")
    green = None if given is None else GreenCounts.from_dict(given, f"prediction {row.id!r}")
    return report_measures(row.prediction, row.meta["answer"], green)


def table_of(verdicts: Sequence[Verdict]) -> Counts:
    """Return verdicts as a matrix; ``gold`` and ``predicted`` are the findings, ``measures`` those of one report."""
    rows = [counts_row(verdict.measures, verdict.gold, verdict.predicted) for verdict in verdicts]
    return Counts(
        np.array(rows).reshape(len(rows), len(COLUMNS)),
        [verdict.attribute for verdict in verdicts],
        [verdict.images for verdict in verdicts],
    )


def differences_of(pairs: Mapping[int, Sequence[Pair]], base: str, *, resamples: int, seed: int) -> Numbers:
    """Return the paired differences of all numbers by name, with the answers of all training seeds pooled.

    Args:
        pairs: Training seed to pairs of rows of ``verdicts.csv`` on the same questions.
        base: Name of the run that is subtracted.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resampling.
    """
    sides = [[verdict_of(pair[side]) for of_seed in pairs.values() for pair in of_seed] for side in (0, 1)]
    if not sides[0]:
        return {}
    first, second = map(table_of, sides)
    return differences(first, second, base, names=list(DEFINITIONS), resamples=resamples, seed=seed)
