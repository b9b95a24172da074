"""Curves of what a method measures beside its loss, in training and validation, in the panels that the method names."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from medtune.reporting.curves import PANELS, series
from medtune.reporting.plots import GREY, STYLE, colour, svg_text
from medtune.reporting.runs import Run
from medtune.reporting.summary import MISSING
from medtune.reporting.views import Cell, Row, Section, Table

VALIDATION = "validation_"
COMMON = frozenset(("step", "epoch", "stage", "loss", "weight", *PANELS))
"""Keys that every run writes; ``lr/...`` too. The other numbers are the method's."""
_ACROSS = 3
_DASHES = ["-", "--", ":", "-."]


def method_section(runs: Sequence[Run], step: str = "") -> Section | None:
    """Return the curves of the methods' own metrics and a table of their last values; None if there are none.

    Args:
        runs: Runs; a run's colour is that of its place.
        step: Name of the step that the runs are, for the title; empty for whole runs.
    """
    names = own_metrics(runs)
    if not names:
        return None
    rows = [
        Row(run.name, [_cell(run, name) for name in names], colour(place))
        for place, run in enumerate(runs)
        if own_metrics([run])
    ]
    text = (
        "From metrics.jsonl. Thin lines are training steps, thick ones their running mean over a tenth of the run, "
        "diamonds validations. The table has the mean over the last tenth of the logged steps and the last validation."
    )
    alt = f"One panel for each of {', '.join(panels(runs))} over the training steps, one colour for each run"
    title = f"Metrics of the method: {step}" if step else "Metrics of the method"
    return Section(title, text, Table("", names, rows), method_curves(runs), alt, first="Run")


def own_metrics(runs: Sequence[Run]) -> list[str]:
    """Return the names of the metrics that methods added to the loss, in the order of the runs' panels."""
    found = dict.fromkeys(
        key.removeprefix(VALIDATION)
        for run in runs
        for row in run.metrics
        if not isinstance(row.get("intervals"), dict)  # a line of the question set, with metrics of its own
        for key, value in row.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    )
    for run in runs:  # validation metrics may share a line with the question set
        found |= dict.fromkeys(key.removeprefix(VALIDATION) for row in run.metrics for key in row if _validated(key))
    own = [name for name in found if name not in COMMON and not name.startswith("lr/")]
    known = [name for run in runs for names in run.panels.values() for name in names if name in own]
    return list(dict.fromkeys([*known, *own]))


def panels(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Return the panels to draw: title -> metrics; first those that methods named, then one for each other metric."""
    names = own_metrics(runs)
    found: dict[str, list[str]] = {}
    for run in runs:
        for title, metrics in run.panels.items():
            shown = [name for name in metrics if name in names]
            if shown:
                found.setdefault(title, shown)
    placed = {name for metrics in found.values() for name in metrics}
    return found | {name: [name] for name in names if name not in placed}


def method_curves(runs: Sequence[Run]) -> str:
    """Draw the panels: a colour for each run, a line style for each metric, a running mean, diamonds for validations.

    Returns:
        SVG text.
    """
    shown = panels(runs)
    across = min(_ACROSS, len(shown))
    down = math.ceil(len(shown) / across)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.6 * across + 0.4, 2.7 * down + 0.3))
        axes: Any = figure.subplots(down, across, squeeze=False).ravel()
        for panel, (title, names) in zip(axes, shown.items(), strict=False):
            _fill(panel, runs, names)
            panel.set_title(title, fontsize=9.5)
            panel.set_xlabel("step")
            panel.grid(color="#e5e5e5", linewidth=0.7)
            panel.spines[["top", "right"]].set_visible(False)
        for place, run in enumerate(runs):
            if own_metrics([run]):
                axes[0].plot([], [], color=colour(place), label=run.name)
        axes[0].legend(frameon=False, fontsize=8)
        for panel in axes[len(shown) :]:
            panel.set_visible(False)
        figure.tight_layout()
        return svg_text(figure)


def _fill(panel: Any, runs: Sequence[Run], names: Sequence[str]) -> None:
    for name, dashes in zip(names, _DASHES * len(names), strict=False):
        for place, run in enumerate(runs):
            ink, each, held_out = colour(place), series(run, name), series(run, VALIDATION + name)
            if each:
                steps, values = zip(*each, strict=True)
                panel.plot(steps, values, color=ink, linestyle=dashes, linewidth=0.7, alpha=0.3)
                panel.plot(steps, running_mean(values), color=ink, linestyle=dashes, linewidth=1.5)
            if held_out:
                panel.plot(*zip(*held_out, strict=True), color=ink, linestyle="none", marker="D", markersize=4)
        if len(names) > 1:
            panel.plot([], [], color=GREY, linestyle=dashes, label=name.rpartition("/")[2])
    if len(names) > 1:
        panel.legend(frameon=False, fontsize=8)


def running_mean(values: Sequence[float]) -> list[float]:
    """Return the mean around each value, over a tenth of all values; at the ends over those that are there."""
    half = len(values) // 20
    return [statistics.fmean(values[max(0, at - half) : at + half + 1]) for at in range(len(values))]


def _validated(key: str) -> bool:
    return key.startswith(VALIDATION)


def _cell(run: Run, name: str) -> Cell:
    values = [value for _, value in series(run, name)]
    held_out = series(run, VALIDATION + name)
    mean = MISSING if not values else f"{statistics.fmean(values[-max(1, len(values) // 10) :]):.4g}"
    return Cell(mean, note=f"validation {held_out[-1][1]:.4g}" if held_out else "")
