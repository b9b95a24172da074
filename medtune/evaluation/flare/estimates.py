"""Numbers that are ratios of sums, with intervals by a bootstrap over images.

Each of FLARE's metrics is a ratio of two sums over answers, or a mean of such ratios over cells (values, data sets,
classes): F1 = sum 2 TP / sum (2 TP + FP + FN), recall = sum hits / sum answers, MAE = sum errors / sum answers. So it
is recomputed on each resample from the sums of the drawn images.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from medtune.evaluation.metrics import BOOTSTRAP, Reduce, drawn_weights, macro, quantile_ends
from medtune.evaluation.resampled import percentile_ends
from medtune.evaluation.result import Metric

Cell = tuple[str, ...]


@dataclass(frozen=True)
class Part:
    """What one answer adds to the sums of one cell.

    Attributes:
        images: the images of the question, which are drawn together.
        cell: name of the cell.
        top: added to the numerator.
        bottom: added to the denominator.
    """

    images: tuple[str, ...]
    cell: Cell
    top: float
    bottom: float


@dataclass(frozen=True)
class Estimate:
    """A number before its interval is computed.

    Attributes:
        definition: one sentence that says how it is computed.
        unit: ``fraction``, ``cells``, ...
        higher_is_better: whether a larger one is better; None for neither.
        parts: the sums.
        n: number of answers.
        reduce: from the cells' ratios ``[..., c]``, in sorted order, NaN where a cell has no denominator, to the
            number.
        clusters: images of every question of the task, so that two runs are resampled alike.
        caution: see :class:`~medtune.evaluation.result.Metric`; the number then has no interval.
    """

    definition: str
    unit: str
    higher_is_better: bool | None
    parts: Sequence[Part]
    n: int
    reduce: Reduce = macro
    clusters: Sequence[tuple[str, ...]] = field(default_factory=tuple)
    caution: str = ""

    def value(self) -> float | None:
        """Return the number; None if it is undefined, because no cell has a denominator."""
        names = self._clusters()
        return None if not self.parts else _known(self._drawn(np.ones((1, len(names))), names))

    def drawn(self, resamples: int, seed: int) -> NDArray[np.float64] | None:
        """Return the number in each resample, ``[resamples]``, NaN where undefined; None for fewer than two images."""
        names = self._clusters()
        if len(names) < 2 or not self.parts:
            return None
        return np.concatenate([self._drawn(weights, names) for weights in drawn_weights(len(names), resamples, seed)])

    def metric(self, resamples: int, seed: int) -> Metric:
        """Return the number with its 95% percentile interval."""
        value = self.value()
        drawn = None if value is None or self.caution else self.drawn(resamples, seed)
        ends = None
        if drawn is not None:
            ends = percentile_ends(drawn, len(self._clusters())) if self.unit == "fraction" else quantile_ends(drawn)
        text = f"{self.definition}; {BOOTSTRAP}"
        return Metric(value, self.unit, self.higher_is_better, self.n, ends, text, self.caution)

    def _clusters(self) -> list[tuple[str, ...]]:
        return sorted({*self.clusters, *(part.images for part in self.parts)})

    def _drawn(self, weights: NDArray[np.float64], names: Sequence[tuple[str, ...]]) -> NDArray[np.float64]:
        """Return the number for each row of ``weights`` ``[resamples, clusters]``."""
        place = {name: at for at, name in enumerate(names)}
        cells = {cell: at for at, cell in enumerate(sorted({part.cell for part in self.parts}))}
        flat = [place[part.images] * len(cells) + cells[part.cell] for part in self.parts]
        shape = (len(names), len(cells))
        sides = ([part.top for part in self.parts], [part.bottom for part in self.parts])
        sums = (np.bincount(flat, weights=side, minlength=shape[0] * shape[1]).reshape(shape) for side in sides)
        top, bottom = (weights @ side for side in sums)
        ratios = np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom > 0)
        return np.where(np.isnan(ratios).all(-1), np.nan, self.reduce(ratios))


def root(means: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean over cells of the roots of their means, for root mean squared errors."""
    return macro(np.sqrt(means))


def difference(first: Estimate, second: Estimate, base: str, resamples: int, seed: int) -> Metric:
    """Return the second number minus the first one, of two runs on the same questions.

    Args:
        first: of the run that is subtracted.
        second: of the other run.
        base: name of the first run, for the definition.
        resamples: number of bootstrap resamples; both runs use the same ones.
        seed: seed of the resampling.
    """
    before, after = first.value(), second.value()
    value = None if before is None or after is None else after - before
    drawn = [estimate.drawn(resamples, seed) for estimate in (first, second)]
    ends = None
    if value is not None and drawn[0] is not None and drawn[1] is not None and not (first.caution or second.caution):
        ends = quantile_ends(drawn[1] - drawn[0])
    unit = "difference of fractions" if second.unit == "fraction" else second.unit
    text = f"{second.definition}; minus that of {base}, on the same questions; {BOOTSTRAP}"
    caution = second.caution or first.caution
    return Metric(value, unit, second.higher_is_better, second.n, ends, text, caution)


def _known(drawn: NDArray[np.float64]) -> float | None:
    return None if np.isnan(drawn[0]) else float(drawn[0])
