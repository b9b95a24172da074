"""Pages about a selection model: its measures on held-out pairs, and the best and worst of what it has scored."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure as Canvas
from numpy.typing import NDArray

from medtune.reporting.gallery import OpenImage, thumbnail
from medtune.reporting.plots import COLOURS, GREY, STYLE, svg_text
from medtune.reporting.report import render_sections
from medtune.reporting.views import Cell, Example, Option, Row, Section, Table, cell

TITLES = {"accuracy": "ACC, %", "auc": "AUC, %", "mean_rank": "mean rank, %", "map": "MAP, %"}
_TEXT = 600


def measures_page(found: Mapping[str, Any], pairs: Any) -> str:
    """Return the page of a selection model's measures; it shows no image and no text of a patient.

    Args:
        found: what :func:`medtune.curation.selector_measures.measured` returns.
        pairs: the scored pairs.
    """
    return render_sections(measures_sections(found, pairs), title="Selection model on held-out pairs")


def measures_sections(found: Mapping[str, Any], pairs: Any) -> list[Section]:
    """Return the sections of a selection model's measures."""
    row = Row("selection model", [cell(found["measures"][name], against=_chance(name)) for name in TITLES])
    sources = ", ".join(f"{count} of {name}s" for name, count in found["sources"].items())
    help = (
        f"{found['pairs']} pairs of {found['images']} images ({sources}), none of them in the training. Without "
        "knowledge each number is 50%; of the mean rank, less is better. Green lies on the better side of 50% with its "
        "whole interval."
    )
    sections = [
        Section(
            "Order of pairs",
            help,
            Table("", list(TITLES.values()), [row]),
            measures_chart(found["top"], pairs.preferred, pairs.rejected),
            "Precision and F1 of the best K percent, and histograms of the scores of preferred and rejected samples",
            first="",
        )
    ]
    if found["agreement"] is not None:
        compared = found["agreement"]
        rows = [Row(name, [cell(compared[name], against=0.5)]) for name in ("selector", "judge")]
        rows.append(Row("selector minus judge", [cell(compared["difference"], against=0.0, sign=True)]))
        words = f"On the pairs that the judge has scored; {compared['judge_ties']} of its scores are equal."
        sections.append(Section("Agreement with people", words, Table("", ["agreement, %"], rows), first=""))
    return sections


def _chance(name: str) -> float | None:
    return 0.5 if name in TITLES else None


def measures_chart(
    top: Mapping[str, Sequence[float]], preferred: NDArray[np.float64], rejected: NDArray[np.float64]
) -> str:
    """Draw precision and F1 over K, and the distributions of the scores.

    Returns:
        SVG text.
    """
    with matplotlib.rc_context(STYLE):
        figure = Canvas(figsize=(9.6, 3.2))
        left, right = figure.subplots(1, 2)
        for place, name in ((1, "precision"), (2, "f1")):
            line = [100 * value for value in top[name]]
            left.plot(top["k_percent"], line, color=COLOURS[place], marker="o", markersize=3, label=f"{name}@K")
        left.axhline(50, linestyle="--", color=GREY, linewidth=1)
        left.set(xlabel="K: best percent of the ranking", ylabel="%", ylim=(0, 100))
        left.legend(frameon=False)
        every = np.concatenate([preferred, rejected])
        low, high = float(every.min()), float(every.max())
        span = (low, high if high > low else low + 1)
        for values, ink, name in ((preferred, COLOURS[1], "preferred"), (rejected, COLOURS[3], "rejected")):
            right.hist(values, bins=30, range=span, color=ink, alpha=0.5, label=name)
        right.set(xlabel="score", ylabel="samples")
        right.legend(frameon=False)
        for panel in (left, right):
            panel.spines[["top", "right"]].set_visible(False)
        figure.tight_layout()
        return svg_text(figure)


def choice_sections(
    manifest: Mapping[str, Any],
    scores: NDArray[np.float64],
    threshold: float,
    best: Sequence[Mapping[str, Any]],
    worst: Sequence[Mapping[str, Any]],
    open_image: OpenImage | None,
) -> list[Section]:
    """Return the sections of a selection: what was taken, and its best and worst rows with images.

    Args:
        manifest: of the selection.
        scores: of all scored rows.
        threshold: lowest score that was taken.
        best: rows with the highest scores: ``id``, ``image``, ``score``, ``rank``, ``taken`` and ``turns``.
        worst: rows with the lowest scores.
        open_image: opens an image; None shows none.
    """
    counts = manifest["counts"]
    names = ("rows", "scored", "unscored", "taken")
    table = Table("", list(names), [Row("rows", [Cell(str(counts[name])) for name in names])])
    words = f"{manifest['rule']}. Lowest score taken: {threshold:.3g}."
    sections = [
        Section("Selection", words, table, scores_chart(scores, threshold), "Histogram of the scores", first="")
    ]
    for title, rows in (("Best rows", best), ("Worst rows", worst)):
        if rows:
            help = "By score, the outermost first. The page shows images and texts of the data."
            sections.append(Section(title, help, examples=[_example(row, open_image) for row in rows]))
    return sections


def scores_chart(scores: NDArray[np.float64], threshold: float) -> str:
    """Draw the distribution of the scores, and the lowest one that was taken, as SVG text."""
    with matplotlib.rc_context(STYLE):
        figure = Canvas(figsize=(8.2, 2.6))
        panel = figure.subplots()
        panel.hist(scores, bins=60, color=COLOURS[2], alpha=0.7)
        panel.axvline(threshold, color=COLOURS[3], linewidth=1.2)
        panel.set(xlabel="score; the line is the lowest one taken", ylabel="rows")
        panel.spines[["top", "right"]].set_visible(False)
        figure.tight_layout()
        return svg_text(figure)


def _example(row: Mapping[str, Any], open_image: OpenImage | None) -> Example:
    picture, trouble = thumbnail(row["image"], open_image) if row["image"] else ("", "the row has no image")
    taken = bool(row["taken"])
    options = [
        Option(f"{number}. {_short(question)}", _short(answer), "", "good" if taken else "bad")
        for number, (question, answer) in enumerate(row["turns"], start=1)
    ]
    group = "" if row.get("group") is None else f", group {row['group']}"
    note = f"rank {row['rank']}{group}, {'taken' if taken else 'not taken'}"
    return Example(f"score {row['score']:.3f}: {row['id']}", [picture] if picture else [], options, trouble, note)


def _short(text: str) -> str:
    return text if len(text) <= _TEXT else text[:_TEXT].rstrip() + " …"


def weights_page(rows: Mapping[str, Mapping[str, Any]], seeds: int) -> str:
    """Return the page of a comparison of weights (Table 1).

    Args:
        rows: weight -> measure -> ``mean``, ``deviation`` and ``interval``.
        seeds: number of seeds.
    """
    lines = []
    for weight, numbers in rows.items():
        cells = []
        for name in TITLES:
            one = numbers[name]
            spread = "" if one["deviation"] is None else f"± {100 * one['deviation']:.1f}"
            ends = one["interval"]
            span = spread if ends is None else f"[{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]"
            cells.append(Cell(f"{100 * one['mean']:.1f}", span, f"n={one['n']}"))
        lines.append(Row(weight, cells))
    over = f"Means and deviations over {seeds} seeds." if seeds > 1 else "One seed; intervals over images."
    help = f"The weight w multiplies the loss of a human preference. {over} Of the mean rank, less is better."
    table = Table("", list(TITLES.values()), lines)
    alt = "ACC, AUC and MAP over the weight"
    section = Section("Weight of human preferences", help, table, weights_chart(rows), alt, first="w")
    return render_sections([section], title="Weight of human preferences")


def weights_chart(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Draw ACC, AUC and MAP over the weight, on a logarithmic axis, as SVG text."""
    with matplotlib.rc_context(STYLE):
        figure = Canvas(figsize=(6.4, 3.0))
        panel = figure.subplots()
        for place, name in enumerate(("accuracy", "auc", "map"), start=1):
            values = [100 * one[name]["mean"] for one in rows.values()]
            spread = [100 * (one[name]["deviation"] or 0.0) for one in rows.values()]
            weights = [float(weight) for weight in rows]
            panel.errorbar(weights, values, spread, color=COLOURS[place], marker="o", markersize=3, label=TITLES[name])
        panel.set(xscale="log", xlabel="w", ylabel="%")
        panel.legend(frameon=False)
        panel.spines[["top", "right"]].set_visible(False)
        figure.tight_layout()
        return svg_text(figure)
