"""Plots as SVG text: radar chart, accuracies, training curves. matplotlib's global settings are not changed."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from medtune.evaluation.display import Column, Display
from medtune.reporting.displays import displays
from medtune.reporting.runs import Run
from medtune.reporting.summary import asked_protocols, is_share, overall

COLOURS = ("#1a1a1a", "#2e9e4f", "#2563c4", "#d1342f", "#9bbf1f", "#8e44ad", "#e08a1e", "#17a2a8")
"""One colour per run, in the order of the paper's Fig. 5: untuned black, FT green, InstFree blue, with RS red."""
GREY = "#888888"
_DASHES = ["-", "--", ":", "-."]
STYLE = {
    "font.size": 9,
    "font.family": "DejaVu Sans",
    "svg.hashsalt": "medtune",
    "text.parse_math": False,
    "axes.linewidth": 0.8,
}
"""matplotlib settings of all plots of a report."""


def colour(index: int) -> str:
    """Return the colour of the run with this index."""
    return COLOURS[index % len(COLOURS)]


def radar_chart(runs: Sequence[Run], protocol: str) -> str | None:
    """Draw the accuracy for each attribute, one line per run, with rings of majority and chance (paper, Fig. 5).

    Args:
        runs: The runs.
        protocol: The protocol whose accuracies are drawn.

    Returns:
        SVG text, or None for fewer than three attributes, which form no ring.
    """
    asked_runs = [(place, run) for place, run in enumerate(runs) if protocol in run.results["protocols"]]
    column = displays(run.results for run in runs)[protocol].attribute if asked_runs else None
    if column is None:
        return None
    attributes = list(asked_runs[0][1].results["protocols"][protocol]["attributes"])
    if len(attributes) < 3:
        return None
    angles = [2 * math.pi * index / len(attributes) for index in range(len(attributes))]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 6.0))
        axes: Any = figure.add_subplot(projection="polar")
        axes.set_theta_offset(math.pi / 2)
        axes.set_theta_direction(-1)
        for metric, label, dashes in ((column.majority, "majority (train)", "--"), (column.chance, "chance", ":")):
            ring = _ring(asked_runs[0][1], protocol, attributes, metric)
            axes.plot(angles + angles[:1], ring, linestyle=dashes, color=GREY, linewidth=1.2, label=label)
        for place, run in asked_runs:
            ring = _ring(run, protocol, attributes, column.key)
            axes.plot(
                angles + angles[:1], ring, color=colour(place), linewidth=1.8, marker="o", markersize=3, label=run.name
            )
        _dress_radar(axes, angles, attributes)
        figure.legend(loc="lower center", ncols=3, frameon=False, bbox_to_anchor=(0.5, -0.06))
        return svg_text(figure)


def _ring(run: Run, protocol: str, attributes: Sequence[str], metric: str) -> list[float]:
    numbers = run.results["protocols"][protocol]["attributes"]
    values = [100 * (numbers.get(name, {}).get(metric, {}).get("value") or 0.0) for name in attributes]
    return values + values[:1]


def _dress_radar(axes: Any, angles: list[float], attributes: Sequence[str]) -> None:
    axes.set_ylim(0, 100)
    axes.set_yticks([20, 40, 60, 80, 100], ["20", "40", "60", "80", "100"], color=GREY, fontsize=7)
    axes.set_rlabel_position(180 / len(attributes))
    axes.set_xticks(angles, [_wrapped(name) for name in attributes])
    for label, angle in zip(axes.get_xticklabels(), angles, strict=True):
        side = math.sin(angle)
        label.set_horizontalalignment("left" if side > 0.1 else "right" if side < -0.1 else "center")
    axes.tick_params(axis="x", pad=4)
    axes.grid(color="#dddddd", linewidth=0.7)
    axes.spines["polar"].set_color("#cccccc")


def accuracy_chart(runs: Sequence[Run]) -> str | None:
    """Draw each protocol's first number with its interval, one panel per protocol; lines mark majority and chance.

    Returns:
        SVG text, or None when no protocol was asked.
    """
    results = [run.results for run in runs]
    protocols = asked_protocols(results)
    if not protocols:
        return None
    shown = displays(results)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.6 * len(protocols) + 1.2, 0.34 * len(runs) + 1.1))
        panels: Any = figure.subplots(1, len(protocols), sharey=True, squeeze=False)[0]
        for panel, protocol in zip(panels, protocols, strict=True):
            _fill_panel(panel, results, protocol, shown[protocol])
            panel.grid(axis="x", color="#e5e5e5", linewidth=0.7)
            panel.spines[["top", "right", "left"]].set_visible(False)
            panel.tick_params(axis="y", length=0)
        panels[0].set_yticks(range(len(runs)), [run.name for run in runs])
        panels[0].set_ylim(len(runs) - 0.5, -0.5)
        figure.supxlabel(
            "accuracy, % (mean over attributes); dashed: majority of the training split, dotted: chance", fontsize=8
        )
        figure.tight_layout()
        return svg_text(figure)


def _fill_panel(panel: Any, results: Sequence[dict[str, Any]], protocol: str, shown: Display) -> None:
    column: Column = shown.headline[0]
    numbers = [overall(run_results, protocol, column.key) for run_results in results]
    for place, number in enumerate(numbers):
        _whisker(panel, place, number)
    for metric, dashes in ((column.majority, "--"), (column.chance, ":")):
        number = next(
            (value for value in (overall(run_results, protocol, metric) for run_results in results) if value), None
        )
        if number and number["value"] is not None:
            panel.axvline(_scaled(number["value"], number), linestyle=dashes, color=GREY, linewidth=1.2)
    units = {number["unit"] for number in numbers if number is not None and not is_share(number["unit"])}
    panel.set_title(", ".join([shown.title, *sorted(units)]), fontsize=9.5)
    if not units:
        panel.set_xlim(0, 100)


def _scaled(value: float, number: Mapping[str, Any]) -> float:
    """Convert a share to percent; return another number unchanged."""
    return 100 * value if is_share(number.get("unit", "fraction")) else value


def _whisker(panel: Any, place: int, number: dict[str, Any] | None) -> None:
    if number is None or number["value"] is None:
        return
    if number["interval"]:
        ends = [_scaled(end, number) for end in number["interval"]]
        panel.plot(ends, [place, place], color=colour(place), linewidth=1.6)
    panel.plot([_scaled(number["value"], number)], [place], marker="o", markersize=5.5, color=colour(place))


def sweep_chart(
    spreads: Mapping[str, Mapping[str, dict[str, Any]]],
    axis: str,
    places: Mapping[str, float],
    titles: Mapping[str, str],
) -> str | None:
    """Draw numbers against a swept value, one panel per number, with deviations over seeds (paper, Fig. 6 and 7).

    The values are drawn at equal distances.

    Args:
        spreads: Variant title to number name to ``{mean, deviation, ...}``.
        axis: Name of the swept value.
        places: Variant title to its value; other variants are drawn as horizontal lines.
        titles: Names of the numbers to draw, with the headings of the panels.

    Returns:
        SVG text, or None for fewer than two values or no number.
    """
    swept = sorted((value, variant) for variant, value in places.items() if variant in spreads)
    if len(swept) < 2 or not titles:
        return None
    levels = [variant for variant in spreads if variant not in places]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.5 * len(titles) + 0.6, 2.9))
        panels: Any = figure.subplots(1, len(titles), squeeze=False)[0]
        for panel, (name, title) in zip(panels, titles.items(), strict=True):
            _level_lines(panel, spreads, levels, name)
            swept_spreads = [
                (at, spreads[variant][name]) for at, (_, variant) in enumerate(swept) if name in spreads[variant]
            ]
            panel.errorbar(
                [at for at, _ in swept_spreads],
                [_scaled(spread["mean"], spread) for _, spread in swept_spreads],
                [_scaled(spread["deviation"] or 0.0, spread) for _, spread in swept_spreads],
                color=COLOURS[2],
                marker="o",
                markersize=4,
                linewidth=1.4,
                capsize=3,
            )
            panel.set_xticks(range(len(swept)), [f"{value:g}" for value, _ in swept], rotation=45, fontsize=7.5)
            panel.set_title(title, fontsize=9.5)
            panel.grid(color="#e5e5e5", linewidth=0.7)
            panel.spines[["top", "right"]].set_visible(False)
        units = {numbers[name].get("unit", "%") for numbers in spreads.values() for name in titles if name in numbers}
        panels[0].set_ylabel("%" if units <= {"%"} else ", ".join(sorted(units)))
        if levels:
            figure.legend(*panels[0].get_legend_handles_labels(), loc="lower right", frameon=False, fontsize=7.5)
        figure.supxlabel(axis, fontsize=9)
        figure.tight_layout()
        return svg_text(figure)


def _level_lines(panel: Any, spreads: Mapping[str, Mapping[str, Any]], levels: Sequence[str], name: str) -> None:
    for place, variant in enumerate(levels):
        if name in spreads[variant]:
            height = _scaled(spreads[variant][name]["mean"], spreads[variant][name])
            panel.axhline(height, color=GREY, linestyle=_DASHES[1 + place % 3], linewidth=1.2, label=variant)


def density_chart(densities: Mapping[str, tuple[Sequence[float], Sequence[float]]], places: Mapping[str, int]) -> str:
    """Draw the densities of a response's probability under own and other images, one panel per run (VITask, Fig. 4).

    Args:
        densities: Run name to the shares of images in equal bins of [0, 1], under own and under other images.
        places: Run name to the index of its colour.

    Returns:
        SVG text.
    """
    across = min(4, len(densities))
    down = math.ceil(len(densities) / across)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.5 * across + 0.6, 2.1 * down + 0.5))
        panels: Any = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).ravel()
        for panel, (name, (own, other)) in zip(panels, densities.items(), strict=False):
            edges = [at / len(own) for at in range(len(own) + 1)]
            for shares, ink, label in ((other, GREY, "another image"), (own, colour(places[name]), "own image")):
                heights = [share * len(shares) for share in shares]
                panel.stairs(heights, edges, fill=True, alpha=0.35, color=ink, label=label)
                panel.stairs(heights, edges, color=ink, linewidth=1.2)
            panel.set_title(name, fontsize=9.5)
            panel.set_xlim(0, 1)
            panel.spines[["top", "right"]].set_visible(False)
            panel.tick_params(labelbottom=True)
            panel.legend(loc="upper center", frameon=False, fontsize=7.5)
        for panel in panels[len(densities) :]:
            panel.set_visible(False)
        figure.supxlabel("probability of the right response, geometric mean over its tokens", fontsize=8)
        figure.supylabel("density", fontsize=8)
        figure.tight_layout()
        return svg_text(figure)


def _wrapped(name: str) -> str:
    """Break a long attribute name into two lines, at the space nearest to the middle."""
    words = name.split()
    if len(name) <= 14 or len(words) < 2:
        return name
    half = min(range(1, len(words)), key=lambda cut: abs(len(" ".join(words[:cut])) - len(name) / 2))
    return " ".join(words[:half]) + "\n" + " ".join(words[half:])


def svg_text(figure: Figure) -> str:
    """Return a figure as SVG text; equal figures give equal text."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    return buffer.getvalue()
