"""How well a selection model orders held-out pairs: BioMed-VITAL's Table 1 and Fig. 2."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medtune.config import Component, instantiate
from medtune.data.source import SampleSource
from medtune.data.writing import json_bytes, write_files
from medtune.errors import DataError
from medtune.evaluation.metrics import bootstrap_interval, drawn_weights, quantile_ends
from medtune.evaluation.result import Metric
from medtune.models.selector.builders import load_selector
from medtune.models.selector.sides import side_of, stacked
from medtune.objectives.selection import PREFERRED, REJECTED, SOURCE

MEASURES, SCORES, PAGE = "selection.json", "pair_scores.csv", "selection.html"
PERCENTS = tuple(range(5, 101, 5))
RESAMPLES = 500
Scores = NDArray[np.float64]

DEFINITIONS = {
    "accuracy": "share of pairs whose preferred sample has the higher score; a tie counts half",
    "auc": "area under the ROC curve of the scores of all preferred against all rejected samples",
    "mean_rank": "mean rank of the preferred samples among all samples, the best first, as a share of their number",
    "map": "average precision of the ranking of all samples, the preferred ones being the right ones",
}


@dataclass(frozen=True)
class ScoredPairs:
    """Scores of pairs.

    Attributes:
        ids: of the pairs.
        images: image of each pair's preferred sample; pairs of one image are resampled together.
        sources: whose preference each pair is.
        preferred: scores of the preferred samples, [n].
        rejected: scores of the rejected samples, [n].
        judge: a judge's scores, preferred first, [n, 2]; NaN where it gave none.
        left_out: pairs that could not be scored.
    """

    ids: Sequence[str]
    images: Sequence[str]
    sources: Sequence[str]
    preferred: Scores
    rejected: Scores
    judge: Scores
    left_out: int = 0


def right_order(preferred: Scores, rejected: Scores) -> Scores:
    """Return 1 for each pair in the right order, 0.5 for a tie, else 0."""
    return (preferred > rejected) + 0.5 * (preferred == rejected)


def pooled(preferred: Scores, rejected: Scores) -> tuple[NDArray[np.int64], Scores]:
    """Return labels (1 for preferred samples) and scores of all samples, pair by pair."""
    labels = np.tile(np.array([1, 0]), len(preferred))
    return labels, np.stack([preferred, rejected], axis=1).reshape(-1)


def rank_measures(preferred: Scores, rejected: Scores) -> dict[str, float]:
    """Return ACC, AUC, MR and MAP (Table 1), as fractions.

    Equal scores share their mean rank.

    Args:
        preferred: scores of the preferred samples, [n], n at least 1.
        rejected: scores of the rejected samples, [n].
    """
    from scipy.stats import rankdata
    from sklearn.metrics import average_precision_score, roc_auc_score

    labels, scores = pooled(preferred, rejected)
    ranks = rankdata(-scores)
    return {
        "accuracy": float(right_order(preferred, rejected).mean()),
        "auc": float(roc_auc_score(labels, scores)),
        "mean_rank": float(ranks[labels == 1].mean() / len(scores)),
        "map": float(average_precision_score(labels, scores)),
    }


def top_measures(preferred: Scores, rejected: Scores, percents: Sequence[int] = PERCENTS) -> dict[str, list[float]]:
    """Return precision and F1 of the best K percent of all samples, for each K (Fig. 2, right).

    The best K percent are taken for preferred ones, the others for rejected ones. Equal scores stay in their order.

    Args:
        preferred: scores of the preferred samples, [n].
        rejected: scores of the rejected samples, [n].
        percents: K.
    """
    from sklearn.metrics import f1_score, precision_score

    labels, scores = pooled(preferred, rejected)
    order = np.argsort(-scores, kind="stable")
    found: dict[str, list[float]] = {"k_percent": [], "precision": [], "f1": []}
    for percent in percents:
        taken = np.zeros(len(scores), dtype=np.int64)
        taken[order[: max(1, round(len(scores) * percent / 100))]] = 1
        found["k_percent"].append(percent)
        found["precision"].append(float(precision_score(labels, taken, zero_division=0)))
        found["f1"].append(float(f1_score(labels, taken, zero_division=0)))
    return found


def measured(pairs: ScoredPairs) -> dict[str, Any]:
    """Return everything that is measured of scored pairs, as plain JSON values.

    Raises:
        DataError: There is no pair.
    """
    if not len(pairs.preferred):
        raise DataError("no held-out pair could be scored; make more of them by selector_pairs")
    values = rank_measures(pairs.preferred, pairs.rejected)
    ends = _intervals(pairs)
    metrics = {
        name: Metric(value, "fraction", name != "mean_rank", len(pairs.ids), ends[name], DEFINITIONS[name]).to_dict()
        for name, value in values.items()
    }
    return {
        "pairs": len(pairs.ids),
        "left_out": pairs.left_out,
        "images": len(set(pairs.images)),
        "sources": {name: list(pairs.sources).count(name) for name in sorted(set(pairs.sources))},
        "measures": metrics,
        "top": top_measures(pairs.preferred, pairs.rejected),
        "agreement": agreement(pairs),
    }


def _intervals(pairs: ScoredPairs) -> dict[str, tuple[float, float] | None]:
    """Return 95% intervals by a bootstrap over images."""
    places: dict[str, list[int]] = {}
    for place, image in enumerate(pairs.images):
        places.setdefault(image, []).append(place)
    if len(places) < 2:
        return dict.fromkeys(DEFINITIONS)
    drawn: dict[str, list[float]] = {name: [] for name in DEFINITIONS}
    clusters = [np.asarray(rows) for rows in places.values()]
    for block in drawn_weights(len(clusters), RESAMPLES, 0):
        for weights in np.atleast_2d(block):
            rows = np.concatenate([np.tile(rows, int(n)) for rows, n in zip(clusters, weights, strict=True) if n])
            for name, value in rank_measures(pairs.preferred[rows], pairs.rejected[rows]).items():
                drawn[name].append(value)
    return {name: quantile_ends(np.asarray(values)) for name, values in drawn.items()}


def agreement(pairs: ScoredPairs) -> dict[str, Any] | None:
    """Compare the model's and a judge's agreement with the pairs that the judge has scored (Fig. 2, left).

    Returns:
        ``selector``, ``judge`` and ``difference`` (selector minus judge) with 95% intervals over images; None if there
        is no judge.
    """
    known = np.asarray(np.isfinite(pairs.judge).all(axis=1))
    if not known.any():
        return None
    images = [image for image, one in zip(pairs.images, known, strict=True) if one]
    own = right_order(pairs.preferred[known], pairs.rejected[known])
    other = right_order(pairs.judge[known, 0], pairs.judge[known, 1])
    found = {}
    for name, values in (("selector", own), ("judge", other), ("difference", own - other)):
        ends = bootstrap_interval(values.tolist(), [""] * len(values), images, lambda cells: cells[:, 0], binary=False)
        unit = "difference of fractions" if name == "difference" else "fraction"
        what = "share of pairs in the order that people prefer; a tie counts half"
        found[name] = Metric(float(values.mean()), unit, True, len(values), ends, what).to_dict()
    return {**found, "judge_ties": int((pairs.judge[known, 0] == pairs.judge[known, 1]).sum())}


def measure_selector(weights: Path, dataset: Component, transform: Component, batch_size: int) -> ScoredPairs:
    """Score the pairs of a data set.

    Args:
        weights: Folder of a trained selection model.
        dataset: Builder of the pairs.
        transform: Builder of the inputs, as in training.
        batch_size: Pairs that are scored at once.
    """
    return score_pairs(load_selector(weights), instantiate(dataset), instantiate(transform), batch_size)


@torch.inference_mode()
def score_pairs(model: Any, source: SampleSource, transform: Any, batch_size: int) -> ScoredPairs:
    """Score every pair of a source; a pair whose image is gone is left out and counted.

    Args:
        model: A selection model.
        source: The pairs.
        transform: Makes the model's inputs.
        batch_size: Pairs that are scored at once.
    """
    ids: list[str] = []
    images: list[str] = []
    sources: list[str] = []
    judged: list[tuple[float, float]] = []
    found: list[torch.Tensor] = []
    waiting: list[Any] = []
    left_out = 0

    def flush() -> None:
        if waiting:
            found.append(model.scores(stacked([one for pair in waiting for one in pair])).reshape(-1, 2))
            waiting.clear()

    for index in range(len(source)):
        sample = source[index]
        sides = [side_of(sample.meta.get(name), f"pair {sample.id!r}") for name in (PREFERRED, REJECTED)]
        try:
            opened = source.open_images(sample) if transform.looks else []
            inputs = [
                transform.inputs(side, lambda at=at, opened=opened: opened[min(at, len(opened) - 1)])
                for at, side in enumerate(sides)
            ]
        except DataError:
            left_out += 1
            continue
        waiting.append(inputs)
        ids.append(sample.id)
        images.append(sides[0].get("image") or sample.id)
        sources.append(str(sample.meta.get(SOURCE)))
        judge = sample.meta.get("judge")
        judged.append((float(judge[0]), float(judge[1])) if judge else (float("nan"), float("nan")))
        if len(waiting) == batch_size:
            flush()
    flush()
    scores = torch.cat(found).double().numpy() if found else np.zeros((0, 2))
    table = np.asarray(judged, dtype=np.float64).reshape(-1, 2)
    return ScoredPairs(ids, images, sources, scores[:, 0], scores[:, 1], table, left_out)


def write_measures(folder: Path, pairs: ScoredPairs) -> dict[str, Any]:
    """Write ``selection.json``, ``pair_scores.csv`` and ``selection.html``, and print the measures."""
    from medtune.curation.selector_report import measures_page

    found = measured(pairs)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("id", "source", "preferred", "rejected"))
    for row in zip(pairs.ids, pairs.sources, pairs.preferred.tolist(), pairs.rejected.tolist(), strict=True):
        writer.writerow(row)
    write_files(
        folder,
        {
            MEASURES: json_bytes(found),
            SCORES: text.getvalue().encode(),
            PAGE: measures_page(found, pairs).encode(),
        },
        overwrite=True,
    )
    shown = ", ".join(f"{name} {100 * one['value']:.1f}%" for name, one in found["measures"].items())
    print(f"{found['pairs']} held-out pairs: {shown}; written to {folder / PAGE}")
    return found
