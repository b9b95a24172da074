"""Scores a set of generated reports: ROUGE-L, BLEU-1 to 4, the F1 of findings, and GREEN where a model has counted.

Every number is a function of sums over reports (:class:`Counts`), so the bootstrap over images multiplies one matrix
and computes all numbers of all resamples at once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medtune.data.labels import LABEL_SEPARATOR, NO_FINDING, label_text
from medtune.evaluation.metrics import BOOTSTRAP, drawn_weights, macro, quantile_ends, rare_classes
from medtune.evaluation.reports.findings import FINDINGS, stated_findings
from medtune.evaluation.reports.green import GreenCounts
from medtune.evaluation.reports.text import ORDERS, bleu, overlap, rouge_l, words
from medtune.evaluation.resampled import percentile_ends
from medtune.evaluation.result import Metric

Array = NDArray[np.float64]
Numbers = dict[str, Metric]
_TEXT = (
    "rouge_l",
    *(f"bleu_match_{order}" for order in range(1, ORDERS + 1)),
    *(f"bleu_total_{order}" for order in range(1, ORDERS + 1)),
    "words",
    "words_right",
)
_GREEN = ("green", "green_read", "green_official", "green_asked")
COLUMNS = ("reports", *_TEXT, *_GREEN, "exact", *(f"{kind}:{name}" for kind in ("tp", "fp", "fn") for name in FINDINGS))
"""Names of the summed columns; ``tp:<finding>`` and the like are counts of one finding."""
_AT = {name: at for at, name in enumerate(COLUMNS)}


@dataclass(frozen=True)
class Counts:
    """The reports of one model as a matrix.

    Attributes:
        rows: ``[reports, columns]`` in the order of :data:`COLUMNS`.
        groups: Data set (or attribute) of each report; ``_macro`` numbers are means over these.
        clusters: The images of each report, which the bootstrap draws.
    """

    rows: Array
    groups: Sequence[str]
    clusters: Sequence[object]


def report_measures(candidate: str, reference: str, green: GreenCounts | None = None) -> dict[str, float]:
    """Return the per-sample numbers of one generated report, by the names of ``measure:`` columns.

    Args:
        candidate: The generated report.
        reference: The right one.
        green: What GREEN's model counted; None if it was not asked. An empty report matches nothing: its score is 0.
    """
    said, right = words(candidate), words(reference)
    matches, totals = overlap(said, right)
    values = [rouge_l(said, right), *matches, *totals, len(said), len(right)]
    found = dict(zip(_TEXT, map(float, values), strict=True))
    if green is None:
        return found
    score = green.score
    known = {} if score is None else {"green": score}
    return {**found, **known, "green_official": green.official, "green_asked": 1.0}


def report_labels(report: str) -> str:
    """Return the findings that a report states, as the text of a label: ``cardiomegaly; device`` or ``no finding``."""
    return label_text(stated_findings(report))


def counts_row(measures: Mapping[str, float], right: str, read: str | None) -> Array:
    """Return one report's row of the matrix.

    Args:
        measures: Its numbers (:func:`report_measures`).
        right: The reference's findings (:func:`report_labels`).
        read: The generated report's findings; None for an empty report, which misses all of them.
    """
    row = np.zeros(len(COLUMNS))
    row[0] = 1.0
    for name in (*_TEXT, *_GREEN):
        row[_AT[name]] = measures.get(name, 0.0)
    row[_AT["green_read"]] = float("green" in measures)
    gold, said = _names(right), set() if read is None else _names(read)
    row[_AT["exact"]] = float(read is not None and gold == said)
    for kind, found in (("tp", gold & said), ("fp", said - gold), ("fn", gold - said)):
        for name in found:
            row[_AT[f"{kind}:{name}"]] = 1.0
    return row


def score_reports(pairs: Sequence[tuple[str, str]], *, resamples: int = 1000, seed: int = 0) -> Numbers:
    """Score generated reports, each of an image of its own.

    Args:
        pairs: Generated report and right report.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resampling.

    Returns:
        The numbers of :data:`DEFINITIONS`, without those of GREEN.
    """
    rows = [
        counts_row(report_measures(said, right), report_labels(right), report_labels(said) if said.strip() else None)
        for said, right in pairs
    ]
    table = Counts(np.array(rows).reshape(len(rows), len(COLUMNS)), [""] * len(rows), list(range(len(rows))))
    return score_counts(table, resamples=resamples, seed=seed)


def _sum(totals: Array, *names: str) -> Array:
    return np.asarray(totals[..., [_AT[name] for name in names]])


def _mean(name: str, over: str = "reports") -> Callable[[Array], Array]:
    return lambda totals: _ratio(_sum(totals, name)[..., 0], _sum(totals, over)[..., 0])


def _ratio(above: Array, below: Array) -> Array:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(below > 0, above / below, np.nan))


def _bleu(order: int) -> Callable[[Array], Array]:
    def of(totals: Array) -> Array:
        matches, every = (
            _sum(totals, *(f"bleu_{kind}_{n}" for n in range(1, ORDERS + 1))) for kind in ("match", "total")
        )
        known = _sum(totals, "reports")[..., 0] > 0
        return np.where(known, bleu(matches, every, _sum(totals, "words", "words_right"), order), np.nan)

    return of


def _of_findings(totals: Array, kind: str) -> Array:
    return _sum(totals, *(f"{kind}:{name}" for name in FINDINGS))


def finding_f1(totals: Array) -> Array:
    """Return the F1 of each finding, ``[..., columns]`` to ``[..., findings]``; NaN if neither side states it."""
    tp, fp, fn = (_of_findings(totals, kind) for kind in ("tp", "fp", "fn"))
    return _ratio(2 * tp, 2 * tp + fp + fn)


def _pooled_f1(totals: Array) -> Array:
    tp, fp, fn = (_of_findings(totals, kind).sum(-1) for kind in ("tp", "fp", "fn"))
    return _ratio(2 * tp, 2 * tp + fp + fn)


def _mean_f1(totals: Array) -> Array:
    each = finding_f1(totals)
    return np.where(np.isnan(each).all(-1), np.nan, macro(each))


def _unread_green(totals: Array) -> Array:
    asked, read = _sum(totals, "green_asked")[..., 0], _sum(totals, "green_read")[..., 0]
    return _ratio(asked - read, asked)


@dataclass(frozen=True)
class Number:
    """A number of a set of reports: its function of summed columns, direction, and definition."""

    of: Callable[[Array], Array]
    better: bool
    definition: str


_SIGNIFICANT = "matched / (matched + clinically significant errors a to f)"
DEFINITIONS: Mapping[str, Number] = {
    "rouge_l": Number(
        _mean("rouge_l"), True, "F1 of the longest common subsequence of words, mean over reports; an empty report is 0"
    ),
    **{
        f"bleu_{order}": Number(
            _bleu(order), True, f"BLEU of all reports together, n-grams of 1 to {order} words, without smoothing"
        )
        for order in range(1, ORDERS + 1)
    },
    "findings_f1": Number(
        _pooled_f1, True, "F1 of the stated findings by rules, counts of all findings and reports together"
    ),
    "findings_mean_f1": Number(
        _mean_f1, True, "F1 of each stated finding by rules, mean over the findings that either side states"
    ),
    "findings_exact": Number(
        _mean("exact"), True, "share of reports that state exactly the findings of the right report, by rules"
    ),
    "green": Number(
        _mean("green", "green_read"),
        True,
        f"GREEN: {_SIGNIFICANT}, mean over the reports for which the model's counts could be read",
    ),
    "green_official": Number(
        _mean("green_official", "green_asked"),
        True,
        f"GREEN as its package counts: {_SIGNIFICANT}, mean over all graded reports; what a reply lacks is 0",
    ),
    "green_unread": Number(
        _unread_green, False, "share of graded reports whose counts could not be read from the model's reply"
    ),
}
"""The numbers by name; those of GREEN are only given where a model was asked."""


def score_counts(
    table: Counts, *, names: Sequence[str] = (), over_groups: bool = False, resamples: int = 1000, seed: int = 0
) -> Numbers:
    """Compute numbers of one model's reports with intervals by a bootstrap over images.

    Args:
        table: The reports.
        names: Which numbers; empty takes all of :data:`DEFINITIONS`, those of GREEN only if a report was graded.
        over_groups: Compute each number for each group and average these, instead of all reports together.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resampling.
    """
    asked = bool(len(table.rows)) and table.rows[:, _AT["green_asked"]].sum() > 0
    chosen = [name for name in names or DEFINITIONS if asked or not name.startswith("green")]
    totals, drawn, clusters = _totals(table, over_groups, resamples, seed)
    caution = rare_findings(table)
    numbers = {}
    for name in chosen:
        number = DEFINITIONS[name]
        value = _over(number.of(totals))
        ends = None if drawn is None else percentile_ends(_over(number.of(drawn)), clusters)
        text = f"mean over the {totals.shape[0]} groups of {number.definition}" if over_groups else number.definition
        warning = caution if name == "findings_mean_f1" else ""
        numbers[name] = Metric(
            None if np.isnan(value) else float(value),
            "fraction",
            number.better,
            _asked(table, name),
            None if warning else ends,
            f"{text}; {BOOTSTRAP}",
            warning,
        )
    return numbers


def finding_numbers(table: Counts, *, resamples: int = 1000, seed: int = 0) -> dict[str, Numbers]:
    """Return F1, precision and recall of each finding that either side states; n counts the right reports with it."""
    totals, drawn, clusters = _totals(table, False, resamples, seed)
    found: dict[str, Numbers] = {}
    for at, name in enumerate(FINDINGS):
        tp, fp, fn = (totals[0, _AT[f"{kind}:{name}"]] for kind in ("tp", "fp", "fn"))
        if tp + fp + fn == 0:
            continue
        ends = None if drawn is None else percentile_ends(finding_f1(drawn)[:, 0, at], clusters)
        caution = rare_classes({name: int(tp + fn)})
        n, whose = int(tp + fn), f"reports that state {name}, by rules"
        share = {"precision": _ratio(tp, tp + fp), "recall": _ratio(tp, tp + fn)}
        found[name] = {
            "f1": Metric(
                float(finding_f1(totals)[0, at]),
                "fraction",
                True,
                n,
                None if caution else ends,
                f"F1 of {whose}",
                caution,
            ),
            **{
                key: Metric(None if np.isnan(value) else float(value), "fraction", True, n, None, f"{key} of {whose}")
                for key, value in share.items()
            },
        }
    return found


def differences(
    first: Counts, second: Counts, base: str, *, names: Sequence[str], resamples: int = 1000, seed: int = 0
) -> Numbers:
    """Return second minus first, mean over groups, paired: both use the same resamples of the same images.

    Args:
        first: One model's reports.
        second: Another's on the same questions, in the same order.
        base: Name of the first model.
        names: Which numbers.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resampling.
    """
    before, before_drawn, _ = _totals(first, True, resamples, seed)
    after, after_drawn, _ = _totals(second, True, resamples, seed)
    numbers = {}
    for name in names:
        number = DEFINITIONS[name]
        value = _over(number.of(after)) - _over(number.of(before))
        if np.isnan(value):
            continue
        ends = None
        if before_drawn is not None and after_drawn is not None:
            ends = quantile_ends(_over(number.of(after_drawn)) - _over(number.of(before_drawn)))
        text = f"{number.definition}; minus that of {base}, paired by question; {BOOTSTRAP}"
        numbers[name] = Metric(float(value), "difference of fractions", number.better, len(second.rows), ends, text)
    return numbers


def rare_findings(table: Counts) -> str:
    """Return the sentence that warns of findings that few right reports state; empty if all are frequent."""
    if not len(table.rows):
        return ""
    stated = table.rows.sum(0)
    frequent = {name: int(stated[_AT[f"tp:{name}"]] + stated[_AT[f"fn:{name}"]]) for name in FINDINGS}
    return rare_classes({name: count for name, count in frequent.items() if count})


def _over(values: Array) -> Any:
    """Return the mean over the groups, the last axis; NaN if the number is undefined for all of them."""
    return np.where(np.isnan(values).all(-1), np.nan, macro(values))


def _asked(table: Counts, name: str) -> int:
    if not len(table.rows):
        return 0
    over = {"green": "green_read", "green_official": "green_asked", "green_unread": "green_asked"}.get(name, "reports")
    return int(table.rows[:, _AT[over]].sum())


def _totals(table: Counts, over_groups: bool, resamples: int, seed: int) -> tuple[Array, Array | None, int]:
    """Return the sums of each group, ``[groups, columns]``, of each resample, and the number of images."""
    groups = list(table.groups) if over_groups else [""] * len(table.rows)
    names, group = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
    clusters, cluster = np.unique(np.asarray([repr(key) for key in table.clusters], dtype=str), return_inverse=True)
    sums = np.zeros((max(1, len(clusters)), max(1, len(names)), len(COLUMNS)))
    np.add.at(sums, (cluster, group), table.rows)
    if len(clusters) < 2:
        return sums.sum(0), None, len(clusters)
    flat = sums.reshape(len(clusters), -1)
    drawn = [weights @ flat for weights in drawn_weights(len(clusters), resamples, seed)]
    return sums.sum(0), np.concatenate(drawn).reshape(-1, *sums.shape[1:]), len(clusters)


def _names(label: str) -> set[str]:
    return set() if label == NO_FINDING else set(label.split(LABEL_SEPARATOR))
