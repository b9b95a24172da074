"""How well a task router tells tasks apart, how far its scores can be trusted, and what it does with other texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from medtune.data.randomness import sample_rng
from medtune.data.sample import Sample, last_question
from medtune.data.source import SampleSource, place
from medtune.errors import DataError
from medtune.evaluation.confusion import confusion
from medtune.evaluation.metrics import proportion
from medtune.evaluation.result import Metric
from medtune.routing.routes import TaskRouter

SCHEMA = "medtune-router-1"
NO_TASK = "none"
BINS = 10
FEW = 15
"""A bin with fewer questions is drawn, and marked as one with few."""


@runtime_checkable
class OrderedRouter(Protocol):
    """A router whose scores may depend on the order in which it is told the labels."""

    def ordered_probabilities(self, questions: Sequence[str], order: Sequence[int]) -> NDArray[np.float64]:
        """Return ``[questions, labels]``, the columns in the order of ``labels``."""
        ...


@dataclass(frozen=True)
class Asked:
    """The texts of an evaluation.

    Attributes:
        texts: distinct questions.
        tasks: the task of each; a task that the router was not trained on, or ``none``, should fall back.
        groups: for texts without a label of the router, what they are: ``unseen: segmentation``, ``none: letters``.
    """

    texts: tuple[str, ...]
    tasks: tuple[str, ...]
    groups: tuple[str, ...]


def asked_of(sources: Sequence[SampleSource], labels: Sequence[str]) -> Asked:
    """Read the questions of data sets; a text that occurs several times counts once.

    Args:
        sources: samples with a user turn, of which the last is the question, and ``meta["task"]``.
        labels: of the router.

    Raises:
        DataError: if a sample has no question or no task, or no sample has a task of the router.
    """
    found: dict[str, tuple[str, str]] = {}
    for source in sources:
        for index in range(len(source)):
            sample = source[index]
            text, task = _question(sample, place(source, sample))
            origin = sample.meta.get("origin", "")
            group = task if task in labels else f"none: {origin}" if task == NO_TASK else f"unseen: {task}"
            found.setdefault(text, (task, group))
    if not any(task in labels for task, _ in found.values()):
        raise DataError(f"no question has one of the router's tasks ({', '.join(labels)}); give it questions of them")
    return Asked(tuple(found), *(tuple(values) for values in zip(*found.values(), strict=True)))


def _question(sample: Sample, where: str) -> tuple[str, str]:
    text, task = last_question(sample), sample.meta.get("task")
    if not text or not isinstance(task, str) or not task:
        raise DataError(f"{where}: a router is evaluated on samples with a question and a 'task' in meta; correct it")
    return text, task


def evaluate_router(
    router: TaskRouter, asked: Asked, thresholds: Sequence[float], orders: int = 20, seed: int = 0
) -> dict[str, Any]:
    """Ask a router all texts, and compute its numbers.

    Args:
        router: the router.
        asked: the texts.
        thresholds: scores from which a text goes to its task's adapter.
        orders: number of orders of the labels; the first is the router's own. Only for routers that are told labels.
        seed: decides the orders.

    Returns:
        A tree of plain values and of numbers in the form of :meth:`medtune.evaluation.result.Metric.to_dict`.
    """
    labels = router.labels
    scores = router.probabilities(asked.texts)
    known = np.array([task in labels for task in asked.tasks])
    gold = np.array([labels.index(task) if task in labels else -1 for task in asked.tasks])
    best, top = scores.argmax(axis=1), scores.max(axis=1)
    right = best == gold
    return {
        "schema": SCHEMA,
        "labels": list(labels),
        "router": router.identity(),
        "counts": {name: int(count) for name, count in zip(*np.unique(asked.groups, return_counts=True), strict=True)},
        "accuracy": _share(right[known], "questions of known tasks whose most probable label is right"),
        "by_task": {
            label: _share(right[gold == number], f"questions of {label} whose most probable label is right")
            for number, label in enumerate(labels)
        },
        "confusion": _confusion(labels, gold[known], best[known]),
        "calibration": calibration(top[known], right[known]),
        "thresholds": [_at(threshold, asked, known, right, top) for threshold in thresholds],
        "orders": label_orders(router, [text for text, is_known in zip(asked.texts, known, strict=True) if is_known],
                               gold[known], orders, seed),
    }  # fmt: skip


def _share(values: Sequence[bool] | NDArray[np.bool_], definition: str, higher: bool | None = True) -> dict[str, Any]:
    return proportion(list(values), f"{definition}; Wilson interval", higher_is_better=higher).to_dict()


def _confusion(labels: Sequence[str], gold: NDArray[np.int64], best: NDArray[np.int64]) -> dict[str, Any]:
    table = confusion([labels[at] for at in gold], [labels[at] for at in best], labels)
    return {"gold": list(table.gold), "answered": list(table.answered), "counts": [list(row) for row in table.counts]}


def calibration(
    scores: NDArray[np.float64], right: NDArray[np.bool_], bins: int = BINS, resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Compare scores with the share of right answers.

    The expected calibration error (Naeini et al. 2015) is ``sum_b n_b / n * |accuracy_b - mean score_b|`` over bins of
    equal width. It is biased upwards where bins have few questions, so n is given with each.

    Args:
        scores: the score of the most probable label, from 0 to 1, ``[n]``.
        right: whether this label is right, ``[n]``.
        bins: number of bins.
        resamples: of the bootstrap over questions.
        seed: of the bootstrap.

    Returns:
        ``ece``, a number with its interval, and ``bins`` with their bounds, n, mean score and accuracy.
    """
    at = np.minimum((scores * bins).astype(int), bins - 1)
    rows = []
    for number in range(bins):
        inside = at == number
        n = int(inside.sum())
        rows.append(
            {
                "from": number / bins,
                "to": (number + 1) / bins,
                "n": n,
                "score": float(scores[inside].mean()) if n else None,
                "accuracy": _share(
                    right[inside], f"questions with a score from {number / bins:g} whose label is right"
                ),
            }
        )
    n = len(scores)
    ends = None
    if n:
        rng = np.random.default_rng(seed)
        drawn = [_ece(scores[rows_], right[rows_], at[rows_], bins) for rows_ in rng.integers(0, n, (resamples, n))]
        ends = (float(np.quantile(drawn, 0.025)), float(np.quantile(drawn, 0.975)))
    value = _ece(scores, right, at, bins) if n else None
    caution = "" if n >= 10 * FEW else f"{n} questions in {bins} bins; the error is biased upwards"
    definition = f"expected calibration error over {bins} bins of equal width; interval by a bootstrap over questions"
    return {"ece": Metric(value, "fraction", False, n, ends, definition, caution).to_dict(), "bins": rows}


def _ece(scores: NDArray[np.float64], right: NDArray[np.bool_], at: NDArray[np.int64], bins: int) -> float:
    gaps = np.bincount(at, weights=right.astype(float) - scores, minlength=bins)
    return float(np.abs(gaps).sum() / len(scores))


def _at(
    threshold: float, asked: Asked, known: NDArray[np.bool_], right: NDArray[np.bool_], top: NDArray[np.float64]
) -> dict[str, Any]:
    """What happens at one threshold: to questions of known tasks, and to every group of other texts."""
    back = top < threshold
    others = sorted({group for group, is_known in zip(asked.groups, known, strict=True) if not is_known})
    groups = np.array(asked.groups)
    none = np.array([task == NO_TASK for task in asked.tasks])
    return {
        "threshold": threshold,
        "right_adapter": _share((right & ~back)[known], "questions of known tasks that go to their task's adapter"),
        "wrong_adapter": _share((~right & ~back)[known], "questions of known tasks that go to another adapter", False),
        "known_fall_back": _share(back[known], "questions of known tasks that fall back", None),
        "no_task_falls_back": _share(back[none], "texts of no task that fall back"),
        "unseen_falls_back": _share(back[~known & ~none], "questions of tasks never trained on that fall back"),
        "by_group": {group: _share(back[groups == group], f"texts ({group}) that fall back") for group in others},
    }


def label_orders(
    router: TaskRouter, texts: Sequence[str], gold: NDArray[np.int64], orders: int, seed: int
) -> dict[str, Any] | None:
    """Ask again with the labels in other orders; None for a router that is told no labels.

    Returns:
        ``orders``; ``flips``: the share of questions whose most probable label differs in any order; ``accuracy``: its
        mean over the orders, the lowest and the highest; ``largest_change``: of a probability.
    """
    if not isinstance(router, OrderedRouter) or not texts or orders < 2:
        return None
    count = len(router.labels)
    rng = sample_rng(seed, 0, 0, "label orders")
    permutations = [list(range(count)), *(rng.sample(range(count), count) for _ in range(orders - 1))]
    scores = np.stack([router.ordered_probabilities(texts, order) for order in permutations])
    best = scores.argmax(axis=2)
    accuracies = (best == gold).mean(axis=1)
    flipped = (best != best[0]).any(axis=0)
    return {
        "orders": len(permutations),
        "flips": _share(flipped, f"questions whose label differs in one of {len(permutations)} label orders", False),
        "accuracy": {"mean": float(accuracies.mean()), "low": float(accuracies.min()), "high": float(accuracies.max())},
        "largest_change": float(np.abs(scores - scores[0]).max()),
    }
