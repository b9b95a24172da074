"""Response ranking: does the right response get a higher likelihood under its own image than under another one?

VITask calls this the visual response ranking capability (section 4) and shows it as two densities (Fig. 4), whose
overlap contrastive response tuning is to shrink. Here each question makes one pair: the mean log-probability of the
right response's tokens under its own image, and under an image of the same set with another right response.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from medtune.evaluation.metrics import bootstrap_interval, drawn_weights, macro, proportion
from medtune.evaluation.protocols.base import Verdict
from medtune.evaluation.protocols.response_likelihood import LikelihoodVerdict
from medtune.evaluation.resampled import drawn_area, percentile_ends
from medtune.evaluation.result import Number
from medtune.evaluation.scoring import BOOTSTRAP, Numbers, by_attribute

Array = NDArray[np.float64]
BINS = 20
"""Bins of equal width on [0, 1] of a response's probability."""
DEFINITIONS = {
    "auc": "area under the ROC curve of the likelihoods under own images against those under other images, all images "
    "of the set in one ranking; one half is no ranking at all",
    "own_above_other": "share of images under which the right response is strictly likelier than under the other one",
    "margin": "mean over images of the response's mean log-probability per token under the own image minus that under "
    "the other one",
    "overlap": f"overlap coefficient of the two densities: sum over {BINS} equal bins of the response's probability "
    "(geometric mean over its tokens) of the smaller of the two shares of images; chance alone keeps it below 1, the "
    "more so the fewer the images",
    "probability_own": "mean over images of the response's probability (geometric mean over its tokens), own image",
    "probability_other": "the same under the other image",
}
_TRAITS: dict[str, tuple[str, bool | None]] = {
    "auc": ("fraction", True),
    "own_above_other": ("fraction", True),
    "margin": ("nats per token", True),
    "overlap": ("fraction", False),
    "probability_own": ("fraction", True),
    "probability_other": ("fraction", False),
}
"""Unit of each number, and whether more of it is better."""


@dataclass(frozen=True)
class Pairs:
    """The pairs of one set.

    Attributes:
        own: Mean log-probability per token under the own image, ``[n]``, in nats.
        other: The same under the other image, ``[n]``.
        images: The own image of each pair.
    """

    own: Array
    other: Array
    images: tuple[tuple[str, ...], ...]

    def __len__(self) -> int:
        return len(self.own)


def pair_up(verdicts: Sequence[Verdict]) -> dict[str, Pairs]:
    """Set to its pairs, in alphabetical order; a question that lacks one of its two likelihoods is left out."""
    held = [one for one in verdicts if isinstance(one, LikelihoodVerdict) and one.log_likelihood is not None]
    others = {one.sample_id: one for one in held if one.swapped}
    own = [one for one in held if not one.swapped and one.sample_id in others]
    return {
        name: Pairs(
            np.asarray([one.log_likelihood for one in rows], dtype=np.float64),
            np.asarray([others[one.sample_id].log_likelihood for one in rows], dtype=np.float64),
            tuple(one.images for one in rows),
        )
        for name, rows in by_attribute(own).items()
    }


def score_ranking(verdicts: Sequence[Verdict], *, draws: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Score one model's response likelihoods.

    Args:
        verdicts: On own and on other images.
        draws: Bootstrap draws; own images are drawn, each with its pair.
        seed: Seed of the draws.

    Returns:
        ``{"overall": numbers, "attributes": {set: numbers}, "swapped": None, "densities": {set: {"own", "other"}}}``.
        The overall numbers are means over sets and end in ``_macro``; a density is the share of images in each bin.
    """
    sets = pair_up(verdicts)
    return {
        "overall": _overall(sets, draws, seed),
        "attributes": {name: _of_set(pairs, draws, seed) for name, pairs in sets.items()},
        "swapped": None,
        "densities": {
            name: {"own": density(pairs.own).tolist(), "other": density(pairs.other).tolist()}
            for name, pairs in sets.items()
        },
    }


def ranking_points(pairs: Pairs) -> dict[str, float]:
    """Return every number of one set but its intervals, by name; the set holds at least one pair."""
    probability = {name: float(np.exp(one).mean()) for name, one in (("own", pairs.own), ("other", pairs.other))}
    labels = np.repeat([1, 0], len(pairs))
    return {
        "auc": float(roc_auc_score(labels, np.concatenate([pairs.own, pairs.other]))),
        "own_above_other": float(np.mean(pairs.own > pairs.other)),
        "margin": float(np.mean(pairs.own - pairs.other)),
        "overlap": float(np.minimum(density(pairs.own), density(pairs.other)).sum()),
        "probability_own": probability["own"],
        "probability_other": probability["other"],
    }


def density(log_likelihoods: Array) -> Array:
    """Share of the values in each bin of ``exp(value)`` on [0, 1]; ``[n]`` to ``[BINS]``."""
    counts, _ = np.histogram(np.exp(log_likelihoods), bins=BINS, range=(0.0, 1.0))
    return np.asarray(counts / len(log_likelihoods))


def _of_set(pairs: Pairs, draws: int, seed: int) -> Numbers:
    ends = _intervals({"": pairs}, draws, seed)
    share = proportion((pairs.own > pairs.other).tolist(), "").interval
    ends["own_above_other"] = share
    return {
        name: Number(value, *_TRAITS[name], len(pairs), ends.get(name), DEFINITIONS[name] + _how(name, alone=True))
        for name, value in ranking_points(pairs).items()
    }


def _overall(sets: Mapping[str, Pairs], draws: int, seed: int) -> Numbers:
    count = sum(map(len, sets.values()))
    ends = _intervals(sets, draws, seed) if sets else {}
    values = [ranking_points(pairs) for pairs in sets.values()]
    over = f"mean over the {len(sets)} sets of the "
    return {
        f"{name}_macro": Number(
            float(np.mean([one[name] for one in values])) if values else None,
            *_TRAITS[name],
            count,
            ends.get(name),
            over + text + _how(name),
        )
        for name, text in DEFINITIONS.items()
    }


def _how(name: str, alone: bool = False) -> str:
    if name == "overlap":
        return ""
    return "; Wilson interval" if alone and name == "own_above_other" else f"; {BOOTSTRAP}"


def _intervals(sets: Mapping[str, Pairs], draws: int, seed: int) -> dict[str, tuple[float, float] | None]:
    """Intervals of the means over sets; the overlap has none, because a redrawn density overlaps less by itself."""
    clusters = [image for pairs in sets.values() for image in pairs.images]
    cells = [name for name, pairs in sets.items() for _ in range(len(pairs))]

    def of_mean(measure: Callable[[Pairs], Array], binary: bool = False) -> tuple[float, float] | None:
        values = np.concatenate([measure(pairs) for pairs in sets.values()]).tolist()
        return bootstrap_interval(values, cells, clusters, macro, draws=draws, seed=seed, binary=binary)

    return {
        "auc": _area_interval(list(sets.values()), clusters, draws, seed),
        "own_above_other": of_mean(lambda pairs: cast(Array, (pairs.own > pairs.other).astype(np.float64)), True),
        "margin": of_mean(lambda pairs: pairs.own - pairs.other),
        "probability_own": of_mean(lambda pairs: np.exp(pairs.own)),
        "probability_other": of_mean(lambda pairs: np.exp(pairs.other)),
    }


def _area_interval(
    sets: Sequence[Pairs], clusters: Sequence[object], draws: int, seed: int
) -> tuple[float, float] | None:
    names, cluster = np.unique(np.asarray([repr(one) for one in clusters]), return_inverse=True)
    if len(names) < 2:
        return None
    ends = np.cumsum([0, *map(len, sets)])
    drawn = []
    for weights in drawn_weights(len(names), draws, seed):
        counts = weights[:, cluster]
        areas = []
        for at, pairs in enumerate(sets):
            held = counts[:, ends[at] : ends[at + 1]]
            none = np.zeros_like(held)
            scores = np.concatenate([pairs.own, pairs.other])
            areas.append(drawn_area(scores, np.hstack([held, none]), np.hstack([none, held])))
        drawn.append(macro(np.stack(areas, -1)))
    return percentile_ends(np.concatenate(drawn), len(names))
