"""The threshold of a router, chosen on validation data: what each threshold would have given, and a plot of it.

ME-VLIP answers a question with its task's own adapter if the router's score reaches a threshold (section 2.3). Its
official code has 0.3; 0.5 is a usual value. With a sweep both are points of a curve.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from medtune.errors import ConfigError, DataError
from medtune.reporting.plots import COLOURS, GREY, STYLE, svg_text

KNOWN = (0.3, 0.5)
"""The threshold of ME-VLIP's official code, and the usual one of a classifier."""
NEVER = 1.01
"""A threshold that no score reaches: the fallback answers everything."""


@dataclass(frozen=True)
class Point:
    """What a threshold gives.

    Attributes:
        threshold: Least score at which the task's own adapter answers.
        value: Mean correctness of all questions.
        own: Share of the questions that their task's own adapter answers.
    """

    threshold: float
    value: float
    own: float


@dataclass(frozen=True)
class Sweep:
    """The result of a sweep.

    Attributes:
        points: One per distinguishable threshold, from 0 (always the own adapter) to above 1 (always the fallback).
        best: The point with the highest value; of several, the middle of the widest range of thresholds.
        known: The points of :data:`KNOWN`.
        questions: Number of questions.
    """

    points: tuple[Point, ...]
    best: Point
    known: tuple[Point, ...]
    questions: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "best": asdict(self.best),
            "known": [asdict(point) for point in self.known],
            "always_own": asdict(self.points[0]),
            "always_fallback": asdict(self.points[-1]),
            "questions": self.questions,
            "points": [asdict(point) for point in self.points],
        }


def sweep(
    scores: NDArray[np.float64],
    labels: Sequence[str],
    correct: Mapping[str, Sequence[float]],
    fallback: str,
) -> Sweep:
    """Compute the mean correctness at every threshold; :func:`medtune.routing.routes.choose` is applied to each.

    Args:
        scores: Probability of each task, ``[questions, labels]``.
        labels: Name of each column.
        correct: adapter -> how right its answer to each question is, from 0 to 1; adapters have the names of their
            tasks. Every adapter was asked every question.
        fallback: The adapter below the threshold and for tasks without an adapter; one of ``correct``.

    Raises:
        ConfigError: If the fallback is not among the adapters.
        DataError: If there are no questions, the numbers of questions differ, or a number is not finite.
    """
    if fallback not in correct:
        raise ConfigError(f"the fallback {fallback!r} is not among the adapters {', '.join(sorted(correct))}")
    table = {name: np.asarray(values, dtype=np.float64) for name, values in correct.items()}
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 2 or not len(scores) or scores.shape[1] != len(labels):
        raise DataError(f"scores of shape {list(scores.shape)} do not fit {len(labels)} labels; [questions, labels]")
    for name, values in table.items():
        if values.shape != (len(scores),):
            raise DataError(f"adapter {name!r} was asked {values.size} questions, the router {len(scores)}")
    if not all(np.isfinite(values).all() for values in (scores, *table.values())):
        raise DataError("a score or a correctness is not a finite number")
    best = scores.argmax(axis=1)
    rows = np.arange(len(scores))
    own = np.array([table.get(labels[column], table[fallback])[row] for row, column in zip(rows, best, strict=True)])
    has_own = np.array([labels[column] in table for column in best])
    return _swept(scores[rows, best], own, table[fallback], has_own)


def _swept(
    top: NDArray[np.float64], own: NDArray[np.float64], other: NDArray[np.float64], has_own: NDArray[np.bool_]
) -> Sweep:
    def at(threshold: float) -> Point:
        reached = top >= threshold
        return Point(float(threshold), float(np.where(reached, own, other).mean()), float((reached & has_own).mean()))

    # between two scores that occur, every threshold gives the same
    edges = [0.0, *np.unique(top)]
    thresholds = [0.0, *((low + high) / 2 for low, high in zip(edges[1:], edges[2:], strict=False)), NEVER]
    points = tuple(at(threshold) for threshold in thresholds)
    widths = [edges[1], *np.diff(edges[1:]), max(0.0, 1 - edges[-1])]
    most = max(point.value for point in points)
    place = max((place for place, point in enumerate(points) if point.value == most), key=lambda place: widths[place])
    return Sweep(points, points[place], tuple(at(threshold) for threshold in KNOWN), len(top))


def draw(found: Sweep, column: str = "correct") -> str:
    """Return a plot as SVG text: what was maximised, and the share of own adapters, over the threshold."""
    measure = "better than the fallback (50%: as good)" if column == "better" else column.removeprefix("measure:")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.4, 3.2))
        axes: Any = figure.add_subplot()
        x = [min(point.threshold, 1.0) for point in found.points]
        for key, label, colour in (("value", measure, COLOURS[2]), ("own", "own adapter answers", GREY)):
            y = [100 * getattr(point, key) for point in found.points]
            axes.step(x, y, where="mid", color=colour, label=label, linewidth=1.6)
        for point in found.known:
            axes.axvline(point.threshold, color=GREY, linestyle=":", linewidth=1)
            axes.annotate(f"{point.threshold:g}", (point.threshold, 2), fontsize=8, color=GREY)
        chosen = min(found.best.threshold, 1.0)
        axes.plot([chosen], [100 * found.best.value], "o", color=COLOURS[3], label=f"best: {found.best.threshold:.2f}")
        axes.set_xlim(0, 1.02)
        axes.set_ylim(0, 102)
        axes.set_xlabel(f"threshold ({found.questions} questions)")
        axes.set_ylabel("%")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
        return svg_text(figure)
