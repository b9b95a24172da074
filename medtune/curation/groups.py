"""Groups of figures by k-means, and a uniform choice from them that prefers complex texts (BioMed-VITAL, Sec. 3.1)."""

import math
import random
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medtune.errors import ConfigError, DataError

LARGE = 100_000
"""From this number of rows on, k-means sees them in batches."""


def complexity(text: str) -> int:
    """Return the number of different words of a text: repeated words do not make it more complex."""
    return len(set(re.findall(r"\w+", text.casefold())))


def grouped(features: NDArray[np.floating], count: int, seed: int) -> NDArray[np.int64]:
    """Sort rows into groups by k-means.

    Args:
        features: ``[N, D]``.
        count: Number of groups K.
        seed: Seed of the start.

    Returns:
        The group of each row, ``[N]``, from 0.

    Raises:
        ConfigError: There are fewer different rows than groups.
        DataError: A feature is not a finite number.
    """
    from sklearn.cluster import KMeans, MiniBatchKMeans

    wrong = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if wrong.size:
        raise DataError(f"the features of row {wrong[0] + 1} are not finite numbers ({wrong.size} such rows)")
    if len(features) < count:
        raise ConfigError(f"groups.count is {count}, and there are {len(features)} figures; lower it")
    if len(features) < LARGE:  # np.unique sorts whole rows, which takes long for many; many rows are rarely all equal
        different = len(np.unique(features, axis=0))
        if different < count:
            raise ConfigError(f"groups.count is {count}, and the figures have {different} different features; lower it")
    kind = KMeans if len(features) < LARGE else MiniBatchKMeans
    found = kind(n_clusters=count, n_init=4, random_state=seed).fit_predict(features.astype(np.float32))
    return found.astype(np.int64)


def quotas(sizes: Sequence[int], total: int, rng: random.Random) -> list[int]:
    """Share out a number over groups as evenly as their sizes allow.

    What a small group cannot give is shared out over the others; a rest goes to groups by chance.

    Args:
        sizes: Of the groups.
        total: At most their sum.
        rng: Decides which groups get the rest.
    """
    found = [0] * len(sizes)
    while (left := total - sum(found)) > 0:
        open_groups = [place for place, size in enumerate(sizes) if found[place] < size]
        if left < len(open_groups):
            for place in rng.sample(open_groups, left):
                found[place] += 1
            break
        each = left // len(open_groups)
        for place in open_groups:
            found[place] += min(each, sizes[place] - found[place])
    return found


def chosen_uniformly(
    groups: NDArray[np.int64], scores: Sequence[int], total: int, complex_share: float, seed: int
) -> list[int]:
    """Choose rows evenly over the groups, at random among the more complex ones of each.

    Args:
        groups: The group of each row, ``[N]``.
        scores: Complexity of each row.
        total: Number M of rows to choose.
        complex_share: Share of each group, its most complex rows, that is drawn from; 1 ignores complexity.
        seed: Seed of the draw.

    Returns:
        Numbers of the rows, in order.

    Raises:
        ConfigError: There are fewer rows than are to be chosen.
    """
    if total > len(groups):
        raise ConfigError(f"groups.size is {total}, and there are {len(groups)} figures; lower it")
    rng = random.Random(seed)
    members = [np.flatnonzero(groups == group).tolist() for group in range(int(groups.max()) + 1)]
    found: list[int] = []
    for rows, count in zip(members, quotas([len(rows) for rows in members], total, rng), strict=True):
        ranked = sorted(rows, key=lambda row: (-scores[row], row))
        pool = ranked[: max(count, math.ceil(complex_share * len(ranked)))]
        found += rng.sample(pool, count)
    return sorted(found)
