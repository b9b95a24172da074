"""Baselines that ignore the image: chance, and the most frequent value of the training split."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medtune.errors import DataError
from medtune.evaluation.metrics import share
from medtune.evaluation.protocols.base import Verdict
from medtune.evaluation.result import Metric

CHANCE = "expected accuracy of a blind guess, 1/number of options for each question"
MAJORITY = "accuracy of always answering the attribute's most frequent value in the training split"


def read_majority(path: str | Path) -> dict[str, str]:
    """Read ``training_majority.json``, which maps each attribute to its most frequent value in the training split.

    Raises:
        DataError: The file is missing, or it is not an object whose values are texts.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: the majority values of the training split are missing; run the prepare recipe again.")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise DataError(f"{path}: not JSON; run the prepare recipe again.") from None
    if not isinstance(values, dict) or not all(isinstance(value, str) for value in values.values()):
        raise DataError(f"{path}: must be an object of attribute: value.")
    return values


def chance(verdicts: Sequence[Verdict]) -> Metric:
    """Return the mean chance level over the questions; it is exact, so it has no interval."""
    value = float(np.mean([verdict.chance for verdict in verdicts])) if verdicts else None
    return Metric(value, "fraction", None, len(verdicts), None, CHANCE)


def majority(verdicts: Sequence[Verdict], resamples: int = 1000, seed: int = 0) -> Metric:
    """Return the accuracy of the training split's majority value; undefined if it is unknown for any question.

    Args:
        verdicts: The verdicts; the model's answers are not used.
        resamples: Number of bootstrap resamples, if questions share images.
        seed: Seed of the resampling.
    """
    known = [] if any(verdict.prior is None for verdict in verdicts) else verdicts
    priors, images = [bool(verdict.prior) for verdict in known], [verdict.images for verdict in known]
    return share(priors, images, MAJORITY, resamples=resamples, seed=seed, higher_is_better=None)
