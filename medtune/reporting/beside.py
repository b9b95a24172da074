"""Models beside each other on every task of a protocol: a panel for each number, bars of runs (ME-VLIP, Fig. 5)."""

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from medtune.evaluation.display import Column
from medtune.reporting.displays import displays
from medtune.reporting.plots import STYLE, colour, svg_text
from medtune.reporting.runs import Run
from medtune.reporting.summary import is_share, overall, written
from medtune.reporting.views import Section

_ACROSS = 4


def beside_sections(runs: Sequence[Run]) -> list[Section]:
    """Return a section for each protocol with several tasks that at least one run was asked."""
    sections = []
    for name, shown in displays(run.results for run in runs).items():
        columns = [column for column in shown.headline if any(_number(run, name, column) for run in runs)]
        if not shown.tasks or not columns:
            continue
        names = ", ".join(run.name for run in runs)
        sections.append(
            Section(
                f"{shown.title}: models beside each other",
                "A panel for each task's number. The line is the 95% interval. An arrow in the title says whether "
                "higher or lower is better; GREEN is to be read beside ROUGE-L and the findings.",
                picture=beside_chart(runs, name, columns, shown.title),
                alt=f"Bars of {', '.join(column.title for column in columns)} for {names}; the table of the protocol "
                "has the numbers.",
            )
        )
    return sections


def _number(run: Run, protocol: str, column: Column) -> dict[str, Any] | None:
    number = overall(run.results, protocol, column.key)
    return None if number is None or number["value"] is None else number


def beside_chart(runs: Sequence[Run], protocol: str, columns: Sequence[Column], title: str = "") -> str:
    """Draw one number of each task for every run.

    Args:
        runs: The runs, in the order of bars.
        protocol: Name of the protocol.
        columns: The numbers, in the order of panels.
        title: The protocol's title, which panels do not repeat.

    Returns:
        SVG text.
    """
    across = min(_ACROSS, len(columns))
    down = math.ceil(len(columns) / across)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.5 * across + 1.0, down * (0.34 * len(runs) + 1.0)))
        panels: Any = figure.subplots(down, across, squeeze=False, sharey=True).ravel()
        for panel, column in zip(panels, columns, strict=False):
            _fill(panel, runs, protocol, column, title)
        for panel in panels[len(columns) :]:
            panel.set_visible(False)
        for panel in panels[::across]:
            panel.set_yticks(range(len(runs)), [run.name for run in runs])
        panels[0].set_ylim(len(runs) - 0.4, -0.6)
        figure.tight_layout()
        return svg_text(figure)


def _fill(panel: Any, runs: Sequence[Run], protocol: str, column: Column, title: str) -> None:
    most, arrow, unit = 0.0, "", "fraction"
    for place, run in enumerate(runs):
        number = _number(run, protocol, column)
        if number is None:
            panel.text(0, place, " not asked", va="center", fontsize=7.5, color="#666666")
            continue
        unit = number["unit"]
        scale = 100.0 if is_share(unit) else 1.0
        arrow = {True: " ↑", False: " ↓", None: ""}[number["higher_is_better"]]
        value = scale * number["value"]
        ends = [scale * end for end in number["interval"] or ()]
        panel.barh(place, value, height=0.62, color=colour(place), alpha=0.8)
        if ends:
            panel.plot(ends, [place, place], color="#222222", linewidth=1.2)
        most = max(most, value, *ends)
        at = max([value, *ends])
        panel.text(at, place, f" {written(number['value'], unit)}", va="center", fontsize=7.5)
    panel.set_title(column.title.removeprefix(f"{title}, ") + arrow, fontsize=8.5)
    panel.set_xlim(0, 118 if is_share(unit) else 1.3 * most or 1.0)
    panel.set_xlabel("%" if is_share(unit) else unit, fontsize=8)
    panel.grid(axis="x", color="#e5e5e5", linewidth=0.7)
    panel.set_axisbelow(True)
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.tick_params(axis="y", length=0)
