"""A plot of groups: the two directions in which the features differ most, and how many of each group were chosen."""

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MOST_POINTS = 5_000


def groups_png(features: NDArray[np.floating], groups: NDArray[np.int64], chosen: Sequence[int]) -> bytes:
    """Return the plot as PNG.

    Args:
        features: ``[N, D]``.
        groups: The group of each row, ``[N]``.
        chosen: Rows that were chosen; they are drawn with a black edge.
    """
    from matplotlib.figure import Figure as Canvas

    places = directions(features)
    picked = np.zeros(len(groups), dtype=bool)
    picked[list(chosen)] = True
    others = np.flatnonzero(~picked)[:: max(1, len(groups) // MOST_POINTS)]
    canvas = Canvas(figsize=(11, 5), layout="constrained")
    left, right = canvas.subplots(1, 2)
    most = int(groups.max()) + 1
    left.scatter(*places[others].T, c=groups[others], cmap="turbo", vmin=0, vmax=most, s=6, alpha=0.4, linewidths=0)
    left.scatter(
        *places[picked].T, c=groups[picked], cmap="turbo", vmin=0, vmax=most, s=18, edgecolors="black", linewidths=0.6
    )
    left.set(title="Figures (chosen ones with a black edge)", xlabel="first component", ylabel="second component")
    sizes, taken = np.bincount(groups, minlength=most), np.bincount(groups[picked], minlength=most)
    right.bar(range(most), sizes, color="0.8", label="in the group")
    right.bar(range(most), taken, color="tab:blue", label="chosen")
    right.set(title="Sizes of the groups", xlabel="group", ylabel="figures", yscale="log")
    right.legend()
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def directions(features: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the first two principal components of rows, ``[N, 2]``; a missing one is 0."""
    centred = np.asarray(features, dtype=np.float64) - features.mean(axis=0)
    some = centred[:: max(1, len(centred) // MOST_POINTS)]
    _, _, axes = np.linalg.svd(some, full_matrices=False)
    found = centred @ axes[:2].T
    return np.pad(found, ((0, 0), (0, 2 - found.shape[1])))
