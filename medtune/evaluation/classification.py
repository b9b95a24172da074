"""Earlier import path of the scores in :mod:`medtune.evaluation.protocols.classification`."""

from medtune.evaluation.protocols.classification import label_table, score_classification, sets_of

__all__ = ["label_table", "score_classification", "sets_of"]
