"""Earlier import path of the scores in :mod:`medtune.evaluation.protocols.response_likelihood`."""

from medtune.evaluation.protocols.response_likelihood import (
    BINS,
    DEFINITIONS,
    Pairs,
    density,
    pair_up,
    ranking_points,
    score_ranking,
)

__all__ = ["BINS", "DEFINITIONS", "Pairs", "density", "pair_up", "ranking_points", "score_ranking"]
