"""Scores other than accuracy: numbers of each answer (an error, a judge's mark) and numbers of a whole set (an F1).

Both kinds are averaged over attributes (``_macro``) and computed over all questions (``_micro``). Intervals are from a
bootstrap over images. A number of each answer is averaged; a number of a set is recomputed on each resample.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from medtune.evaluation.metrics import BOOTSTRAP, bootstrap_interval, drawn_weights, macro, quantile_ends
from medtune.evaluation.protocols.base import Pair, Verdict
from medtune.evaluation.resampled import percentile_ends
from medtune.evaluation.result import Metric
from medtune.evaluation.scoring import DIFFERS, Numbers, by_attribute, paired_difference, share_of

Interval = tuple[float, float] | None
UNREAD = "share of answers from which no answer could be read"


@dataclass(frozen=True)
class Measure:
    """A number of a protocol.

    Attributes:
        name: Its name. Without ``of_set`` it is the name in :attr:`Verdict.measures`.
        unit: For example ``mm``; ``fraction`` is shown in percent.
        higher_is_better: True, False, or None if neither applies (a baseline).
        definition: One sentence that says how it is computed.
        of_set: Computes the number from a list of verdicts, in which a resampled verdict occurs several times. It
            returns None if the number is undefined. Without ``of_set`` the number is the mean of those in the verdicts.
    """

    name: str
    unit: str
    higher_is_better: bool | None
    definition: str
    of_set: Callable[[Sequence[Verdict]], float | None] | None = None


def score_measures(
    verdicts: Sequence[Verdict], measures: Sequence[Measure], *, resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Score one model's verdicts by any measures; the first measure is used for the cost of the image swap.

    Args:
        verdicts: Verdicts on the true and on swapped images.
        measures: The numbers to compute.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resampling.

    Returns:
        ``{"overall": {<name>_macro, <name>_micro, unread}, "attributes": {attribute: {<name>, unread}}, "swapped"}``.
    """
    true, swapped = ([verdict for verdict in verdicts if verdict.swapped is side] for side in (False, True))
    return {
        "overall": _overall(true, measures, resamples, seed),
        "attributes": {
            name: {
                **{measure.name: _number(rows, measure, resamples, seed, macro_over=False) for measure in measures},
                "unread": _unread(rows, resamples, seed),
            }
            for name, rows in by_attribute(true).items()
        },
        "swapped": _swapped(true, swapped, measures, resamples, seed) if swapped else None,
    }


def compare_measures(
    pairs: Mapping[int, Sequence[Pair]], measures: Iterable[Measure], base: str, *, resamples: int = 1000, seed: int = 0
) -> dict[str, Metric]:
    """Compute paired differences of measures of a set, mean over attributes (and training seeds), by ``<name>_macro``.

    Args:
        pairs: Training seed to pairs of rows of ``verdicts.csv`` on the same queries.
        measures: The measures. Those without ``of_set`` are skipped; ``display.paired`` compares one of them.
        base: Name of the run that is subtracted.
        resamples: Number of bootstrap resamples; both runs use the same ones.
        seed: Seed of the resampling.
    """
    sides = [
        [
            ((of, pair[0]["attribute"]), verdict_of(pair[side]))
            for of, seed_pairs in pairs.items()
            for pair in seed_pairs
        ]
        for side in (0, 1)
    ]
    found = {}
    for measure in measures:
        if measure.of_set is None or not sides[0]:
            continue
        before, before_drawn = _over_resamples(sides[0], measure.of_set, resamples, seed)
        after, after_drawn = _over_resamples(sides[1], measure.of_set, resamples, seed)
        value = None if before is None or after is None else after - before
        ends = None if after_drawn is None or before_drawn is None else _ends(after_drawn - before_drawn, "", 0)
        text = f"{measure.definition}; minus that of {base}, paired by question; mean over attributes; {BOOTSTRAP}"
        found[f"{measure.name}_macro"] = Metric(
            value, difference_unit(measure.unit), measure.higher_is_better, len(sides[1]), ends, text
        )
    return found


def difference_unit(unit: str) -> str:
    """Return the unit of a difference of two such numbers."""
    return "difference of fractions" if unit == "fraction" else unit


def verdict_of(row: Mapping[str, str]) -> Verdict:
    """Read a verdict from a row of ``verdicts.csv``, which has no baselines and no text of the answer."""
    return Verdict(
        id=row["id"],
        task=row["task"],
        sample_id=row["sample_id"],
        attribute=row["attribute"],
        images=tuple(row["images"].split("+")),
        gold=row["gold"],
        predicted=row["predicted"] if row["read"] == "1" else None,
        in_format=row["in_format"] == "1",
        swapped=row["swapped"] == "1",
        measures={
            key.removeprefix(MEASURE): float(value) for key, value in row.items() if key.startswith(MEASURE) and value
        },
    )


MEASURE = "measure:"
"""Prefix of the columns of ``verdicts.csv`` that hold per-sample numbers."""


def _overall(rows: Sequence[Verdict], measures: Sequence[Measure], resamples: int, seed: int) -> Numbers:
    numbers: Numbers = {}
    for measure in measures:
        numbers[f"{measure.name}_macro"] = _number(rows, measure, resamples, seed, macro_over=True)
        numbers[f"{measure.name}_micro"] = _number(rows, measure, resamples, seed, macro_over=False)
    return {**numbers, "unread": _unread(rows, resamples, seed)}


def _unread(rows: Sequence[Verdict], resamples: int, seed: int) -> Metric:
    return share_of(rows, lambda verdict: verdict.predicted is None, UNREAD, resamples, seed, False)


def _number(rows: Sequence[Verdict], measure: Measure, resamples: int, seed: int, *, macro_over: bool) -> Metric:
    """Compute one number, as a mean over attributes or over all rows."""
    groups = by_attribute(rows)
    text = f"mean over the {len(groups)} attributes of {measure.definition}" if macro_over else measure.definition
    text += f"; {BOOTSTRAP}"
    if measure.of_set is not None:
        grouped = [(verdict.attribute if macro_over else "", verdict) for verdict in rows]
        value, drawn = _over_resamples(grouped, measure.of_set, resamples, seed)
        ends = None if drawn is None else _ends(drawn, measure.unit, len({verdict.images for verdict in rows}))
        return Metric(value, measure.unit, measure.higher_is_better, len(rows), ends, text)
    known = [verdict for verdict in rows if measure.name in verdict.measures]
    values = [verdict.measures[measure.name] for verdict in known]
    cells = [verdict.attribute if macro_over else "" for verdict in known]
    by_cell: dict[str, list[float]] = {}
    for cell, number in zip(cells, values, strict=True):
        by_cell.setdefault(cell, []).append(number)
    mean = float(np.mean([np.mean(by_cell[cell]) for cell in sorted(by_cell)])) if known else None
    images = [verdict.images for verdict in known]
    binary = measure.unit == "fraction" and set(values) <= {0.0, 1.0}
    interval = bootstrap_interval(values, cells, images, macro, resamples=resamples, seed=seed, binary=binary)
    return Metric(mean, measure.unit, measure.higher_is_better, len(known), interval, text)


def _over_resamples(
    grouped: Sequence[tuple[Hashable, Verdict]],
    of_set: Callable[[Sequence[Verdict]], float | None],
    resamples: int,
    seed: int,
) -> tuple[float | None, np.ndarray | None]:
    """Compute a set's number as a mean over groups: the value, and the values on each resample (NaN if undefined).

    Args:
        grouped: Pairs of group and verdict.
        of_set: Computes the number of a set.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resampling.
    """
    verdicts = [verdict for _, verdict in grouped]
    names, cluster = np.unique(np.asarray([repr(verdict.images) for verdict in verdicts]), return_inverse=True)
    members: dict[Hashable, list[int]] = {}
    for at, (group, _) in enumerate(grouped):
        members.setdefault(group, []).append(at)

    def mean(counts: np.ndarray) -> float:
        rows = [[verdicts[at] for at in places for _ in range(int(counts[at]))] for places in members.values()]
        values = [of_set(group) for group in rows if group]
        known = [value for value in values if value is not None]
        return float(np.mean(known)) if known else float("nan")

    value = mean(np.ones(len(verdicts), dtype=np.int64)) if verdicts else float("nan")
    point = None if np.isnan(value) else value
    if len(names) < 2 or point is None:
        return point, None
    drawn = [mean(weights[cluster]) for block in drawn_weights(len(names), resamples, seed) for weights in block]
    return point, np.asarray(drawn)


def _ends(drawn: np.ndarray, unit: str, clusters: int) -> Interval:
    """Return the 95% percentile interval; for a share that is 0 or 1 in every resample, Wilson's interval."""
    if unit == "fraction":
        return percentile_ends(drawn, clusters)
    return quantile_ends(drawn)


def _swapped(
    true: Sequence[Verdict], swapped: Sequence[Verdict], measures: Sequence[Measure], resamples: int, seed: int
) -> Numbers:
    """Compute the measures on swapped images, and how much worse the first measure is there, paired by question."""
    numbers = _overall(swapped, measures, resamples, seed)
    main = measures[0]
    on_true = {verdict.sample_id: verdict for verdict in true if main.name in verdict.measures}
    pairs = [
        (on_true[verdict.sample_id], verdict)
        for verdict in swapped
        if verdict.sample_id in on_true and main.name in verdict.measures
    ]
    if main.of_set is None:
        worse = -1.0 if main.higher_is_better is False else 1.0
        number = paired_difference(
            [worse * (first.measures[main.name] - second.measures[main.name]) for first, second in pairs],
            [first.attribute for first, _ in pairs],
            [first.images for first, _ in pairs],
            f"{main.name} on true images against swapped ones, positive where the swap makes it worse",
            resamples,
            seed,
        )
        numbers["drop_macro"] = replace(number, unit=difference_unit(main.unit))
    numbers["answer_differs"] = share_of(swapped, lambda verdict: verdict.shown_differs, DIFFERS, resamples, seed, None)
    return numbers
