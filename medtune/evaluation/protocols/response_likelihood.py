"""Likelihood of the right response, given the question and an image (VITask, section 4 and Fig. 4).

The protocol tests whether the right response has a higher likelihood with its own image than with another image. VITask
calls this the visual response ranking capability (section 4) and shows it as two densities (Fig. 4); contrastive
response tuning should reduce their overlap. Here each question gives one pair: the mean log-probability of the right
response's tokens with its own image, and with an image of the same set that has another right response.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import numpy as np
from numpy.typing import NDArray

from medtune.data.multiple_choice import open_question
from medtune.data.sample import Sample
from medtune.errors import DataError
from medtune.evaluation.display import Column, Densities, Display
from medtune.evaluation.metrics import BOOTSTRAP, bootstrap_interval, drawn_weights, macro, share
from medtune.evaluation.prediction import Prediction
from medtune.evaluation.protocols.base import (
    EvaluationProtocol,
    Query,
    Verdict,
    Vocabulary,
    query_frame,
    topic,
    verdict_frame,
)
from medtune.evaluation.protocols.conversation import conversation, user_turn
from medtune.evaluation.resampled import drawn_area, percentile_ends
from medtune.evaluation.result import Metric
from medtune.evaluation.scoring import Numbers, by_attribute
from medtune.evaluation.swapped import contrast_images

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
ROUNDING = 1e-3
"""Tolerance in nats by which a response's log-probability may be above 0 (rounding)."""
_TITLES = {
    "auc": "AUC",
    "own_above_other": "own image above another",
    "margin": "margin",
    "overlap": "overlap",
    "probability_own": "probability, own image",
    "probability_other": "probability, another image",
}
_AUC = Column("auc", "AUC, own image against another", against=0.5)
_DISPLAY = Display(
    "Response ranking",
    rank=70,
    titles={f"{name}_macro": f"Response ranking: {title}" for name, title in _TITLES.items()},
    followed=("auc_macro", "own_above_other_macro", "overlap_macro"),
    followed_of_sets=("auc", "overlap"),
    seeds=(Column("auc_macro", "Response ranking, AUC"), Column("overlap_macro", "Response ranking, overlap")),
    densities=Densities(
        help="How likely is the right response when the question's own image is shown, and when an image of the same "
        "set is shown whose right response is another? A model that ranks responses by what it sees puts the first "
        "above the second; the densities of one that does not look lie on top of each other. An AUC of 50 is no "
        "ranking.",
        columns=(
            _AUC,
            Column("own_above_other", "Own image above another"),
            Column("overlap", "Overlap of the densities"),
            Column("margin", "Margin, nats per token", sign=True),
            Column("probability_own", "Probability, own image"),
            Column("probability_other", "Probability, another image"),
        ),
        alt="Densities of the right response's probability under own and under other images, one panel a model",
        set_help="AUC of the likelihoods under own images against those under other images, and the densities' "
        "overlap.",
        set_column=_AUC,
        set_note=Column("overlap", "overlap"),
    ),
)


@dataclass(frozen=True)
class LikelihoodVerdict(Verdict):
    """The likelihood of the right response with one image.

    Args:
        log_likelihood: Mean log-probability of the response's tokens, in nats; None if the row is missing.
    """

    tabulated: ClassVar[bool] = False  # a likelihood is not an answer
    log_likelihood: float | None = None


class ResponseLikelihood(EvaluationProtocol):
    """Scores the right response as a continuation of the sample's user turn; nothing is generated.

    It is asked twice: on the question's image, and on an image of the same set with another right response
    (:func:`medtune.evaluation.swapped.contrast_images`).
    """

    name: ClassVar[str] = "response_likelihood"
    majority: ClassVar[Literal["required", "used", "none"]] = "used"
    swap_required = True
    display = _DISPLAY

    @staticmethod
    def other_images(samples: Sequence[Sample], seed: int) -> list[Sample]:
        """Return the questions on images of the same set with another right response."""
        return contrast_images(samples, seed)

    def plan(self, sample: Sample) -> list[Query]:
        """Return the one query of a question, with the right response as its only continuation.

        Raises:
            DataError: The question has no image, or its ``meta`` has no right answer.
        """
        about = topic(sample)
        if not sample.images:
            raise DataError(f"question {sample.id!r}: a question needs an image.")
        query_id, shown = query_frame(self.name, sample)
        meta = {"attribute": about.attribute, "answer": about.answer, "options": list(about.values), **shown}
        prompt = user_turn(sample, open_question(about.attribute))
        asked = Sample(id=query_id, images=sample.images, messages=conversation(sample, prompt), meta={})
        return [Query(query_id, self.name, asked, (about.answer,), (about.answer,), meta)]

    def judge(self, row: Prediction, vocabulary: Vocabulary) -> LikelihoodVerdict:
        """Divide ``meta["scores"][0]`` by the number of tokens, ``meta["score_tokens"][0]``.

        The verdict is neither right nor wrong: two verdicts are ranked.

        Raises:
            DataError: The row does not hold the two numbers.
        """
        return LikelihoodVerdict(
            **verdict_frame(row),
            predicted=None,
            in_format=False,
            chance=0.0,
            prior=None,
            log_likelihood=None if row.meta.get("missing") else _mean(row),
        )

    def score(
        self, verdicts: Sequence[Verdict], vocabulary: Vocabulary, *, resamples: int, seed: int
    ) -> dict[str, Any] | None:
        """Score the pairs (:func:`score_ranking`)."""
        return score_ranking(verdicts, resamples=resamples, seed=seed)


@dataclass(frozen=True)
class Pairs:
    """The pairs of one set.

    Attributes:
        own: Mean log-probability per token with the own image, ``[n]``, in nats.
        other: The same with the other image, ``[n]``.
        images: The own image of each pair.
    """

    own: Array
    other: Array
    images: tuple[tuple[str, ...], ...]

    def __len__(self) -> int:
        return len(self.own)


def pair_up(verdicts: Sequence[Verdict]) -> dict[str, Pairs]:
    """Map set to its pairs, in alphabetical order; a question without both likelihoods is left out."""
    scored = [
        verdict for verdict in verdicts if isinstance(verdict, LikelihoodVerdict) and verdict.log_likelihood is not None
    ]
    others = {verdict.sample_id: verdict for verdict in scored if verdict.swapped}
    own = [verdict for verdict in scored if not verdict.swapped and verdict.sample_id in others]
    return {
        name: Pairs(
            np.asarray([verdict.log_likelihood for verdict in rows], dtype=np.float64),
            np.asarray([others[verdict.sample_id].log_likelihood for verdict in rows], dtype=np.float64),
            tuple(verdict.images for verdict in rows),
        )
        for name, rows in by_attribute(own).items()
    }


def score_ranking(verdicts: Sequence[Verdict], *, resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Score one model's response likelihoods.

    Args:
        verdicts: Verdicts on own and on other images.
        resamples: Number of bootstrap resamples; own images are resampled, each with its pair.
        seed: Seed of the resampling.

    Returns:
        ``{"overall": numbers, "attributes": {set: numbers}, "swapped": None, "densities": {set: {"own", "other"}}}``.
        The overall numbers are means over sets and end in ``_macro``; a density is the share of images in each bin.
    """
    sets = pair_up(verdicts)
    return {
        "overall": _overall(sets, resamples, seed),
        "attributes": {name: _of_set(pairs, resamples, seed) for name, pairs in sets.items()},
        "swapped": None,
        "densities": {
            name: {"own": density(pairs.own).tolist(), "other": density(pairs.other).tolist()}
            for name, pairs in sets.items()
        },
    }


def ranking_points(pairs: Pairs) -> dict[str, float]:
    """Return the numbers of one set by name, without intervals; the set must have at least one pair."""
    from sklearn.metrics import roc_auc_score

    probability = {name: float(np.exp(values).mean()) for name, values in (("own", pairs.own), ("other", pairs.other))}
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
    """Return the share of values in each bin of ``exp(value)`` on [0, 1]; ``[n]`` to ``[BINS]``."""
    counts, _ = np.histogram(np.exp(log_likelihoods), bins=BINS, range=(0.0, 1.0))
    return np.asarray(counts / len(log_likelihoods))


def _of_set(pairs: Pairs, resamples: int, seed: int) -> Numbers:
    ends = _intervals({"": pairs}, resamples, seed)
    above = share(
        (pairs.own > pairs.other).tolist(),
        pairs.images,
        DEFINITIONS["own_above_other"],
        resamples=resamples,
        seed=seed,
    )
    numbers = {
        name: Metric(value, *_TRAITS[name], len(pairs), ends.get(name), DEFINITIONS[name] + _how(name))
        for name, value in ranking_points(pairs).items()
    }
    return {**numbers, "own_above_other": above}


def _overall(sets: Mapping[str, Pairs], resamples: int, seed: int) -> Numbers:
    count = sum(map(len, sets.values()))
    ends = _intervals(sets, resamples, seed) if sets else {}
    values = [ranking_points(pairs) for pairs in sets.values()]
    over = f"mean over the {len(sets)} sets of the "
    return {
        f"{name}_macro": Metric(
            float(np.mean([points[name] for points in values])) if values else None,
            *_TRAITS[name],
            count,
            ends.get(name),
            over + text + _how(name),
        )
        for name, text in DEFINITIONS.items()
    }


def _how(name: str) -> str:
    return "" if name == "overlap" else f"; {BOOTSTRAP}"


def _intervals(sets: Mapping[str, Pairs], resamples: int, seed: int) -> dict[str, tuple[float, float] | None]:
    """Return intervals of the means over sets. The overlap has none, because resampling itself reduces the overlap."""
    clusters = [image for pairs in sets.values() for image in pairs.images]
    cells = [name for name, pairs in sets.items() for _ in range(len(pairs))]

    def of_mean(measure: Callable[[Pairs], Array], binary: bool = False) -> tuple[float, float] | None:
        values = np.concatenate([measure(pairs) for pairs in sets.values()]).tolist()
        return bootstrap_interval(values, cells, clusters, macro, resamples=resamples, seed=seed, binary=binary)

    return {
        "auc": _area_interval(list(sets.values()), clusters, resamples, seed),
        "own_above_other": of_mean(lambda pairs: cast(Array, (pairs.own > pairs.other).astype(np.float64)), True),
        "margin": of_mean(lambda pairs: pairs.own - pairs.other),
        "probability_own": of_mean(lambda pairs: np.exp(pairs.own)),
        "probability_other": of_mean(lambda pairs: np.exp(pairs.other)),
    }


def _area_interval(
    sets: Sequence[Pairs], clusters: Sequence[object], resamples: int, seed: int
) -> tuple[float, float] | None:
    names, cluster = np.unique(np.asarray([repr(cluster_name) for cluster_name in clusters]), return_inverse=True)
    if len(names) < 2:
        return None
    ends = np.cumsum([0, *map(len, sets)])
    drawn = []
    for weights in drawn_weights(len(names), resamples, seed):
        counts = weights[:, cluster]
        areas = []
        for at, pairs in enumerate(sets):
            drawn_counts = counts[:, ends[at] : ends[at + 1]]
            zeros = np.zeros_like(drawn_counts)
            scores = np.concatenate([pairs.own, pairs.other])
            areas.append(drawn_area(scores, np.hstack([drawn_counts, zeros]), np.hstack([zeros, drawn_counts])))
        drawn.append(macro(np.stack(areas, -1)))
    return percentile_ends(np.concatenate(drawn), len(names))


def _mean(row: Prediction) -> float:
    score, tokens = (_only_number(row.meta.get(name)) for name in ("scores", "score_tokens"))
    if score is None or tokens is None:
        raise DataError(
            f"prediction {row.id!r}: meta.scores must hold the log-probability of the right response, and "
            "meta.score_tokens the number of its tokens; predict again."
        )
    if score > ROUNDING or tokens < 1:
        raise DataError(
            f"prediction {row.id!r}: a log-probability is at most 0 and a response has tokens, not {score} of {tokens}."
        )
    return min(0.0, score / tokens)


def _only_number(values: object) -> float | None:
    if not isinstance(values, list | tuple) or len(values) != 1 or isinstance(values[0], bool):
        return None
    return float(values[0]) if isinstance(values[0], int | float) and math.isfinite(values[0]) else None
