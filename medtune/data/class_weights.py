"""Weights of rows in the loss, from the frequency of their classes or given for each class."""

from collections.abc import Mapping, Sequence

import numpy as np


def balanced_class_weights(labels: Sequence[tuple[int, ...]], classes: int, multi_label: bool) -> np.ndarray:
    """Weigh rows inversely to the frequency of their classes, as scikit-learn's ``class_weight="balanced"`` does.

    One right class: ``w_i = n / (c * n_k)`` for a row of class k; n rows, n_k of class k, c classes that occur. All
    classes then have the same total weight. Several labels: each label is a two-class problem, and a row's weight is
    the mean over labels of its weight in it, ``w_i = 1/c sum_k n / (2 * n_k(t_ik))``, with n_k(t) rows that agree
    with the row on label k; labels that all or no rows have are left out.

    Args:
        labels: indices of the right classes of each row.
        classes: number of classes of the set.
        multi_label: whether a row may have several labels, or none.

    Returns:
        [n] weights with mean 1.
    """
    from sklearn.utils.class_weight import compute_sample_weight  # a second to import, and only needed here

    if not labels:
        return np.ones(0)
    if not multi_label:
        return np.asarray(compute_sample_weight("balanced", [row[0] for row in labels]), dtype=np.float64)
    present = np.zeros((len(labels), classes), dtype=bool)
    for place, row in enumerate(labels):
        present[place, list(row)] = True
    varied = [column for column in present.T if column.any() and not column.all()]
    if not varied:
        return np.ones(len(labels))
    each: np.ndarray = np.stack([compute_sample_weight("balanced", column) for column in varied])
    return np.asarray(each.mean(axis=0), dtype=np.float64)


def given_class_weights(labels: Sequence[Sequence[str]], weights: Mapping[str, float], nothing: str) -> np.ndarray:
    """Weigh rows by the given weights of their classes; classes without one have weight 1.

    Args:
        labels: the right classes of each row, by name.
        weights: class -> weight.
        nothing: name of a row without labels.

    Returns:
        [n] weights; a row with several labels has the mean of theirs.
    """
    return np.asarray([np.mean([weights.get(name, 1.0) for name in row or [nothing]]) for row in labels])
