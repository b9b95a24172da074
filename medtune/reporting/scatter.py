"""Two per-sample numbers of every answer against each other: predicted beside true values, GREEN beside ROUGE-L."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from medtune.evaluation.display import Scatter
from medtune.evaluation.measures import MEASURE
from medtune.reporting.displays import displays
from medtune.reporting.plots import GREY, STYLE, colour, svg_text
from medtune.reporting.runs import Run
from medtune.reporting.views import Cell, Row, Section, Table

_DECADES = 50.0
"""Values whose largest is more than this many times the smallest are drawn on logarithmic axes."""
_ROOM = 2.0
"""How far the vertical axis may go beyond the true values; what lies beyond is drawn at its edge and counted."""
Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Cloud:
    """The points of one run.

    Attributes:
        name: The run.
        place: Index of its colour.
        points: First and second number of each answer that has both.
        unread: Answers that have only the first.
    """

    name: str
    place: int
    points: Points
    unread: int


def scatter_sections(runs: Sequence[Run]) -> list[Section]:
    """Return a section for each pair of numbers that a protocol's display names and that the answers of a run have."""
    sections = []
    for task, shown in displays(run.results for run in runs).items():
        for one in shown.scatter:
            for group in _groups(runs, task, one):
                clouds = [_cloud(run, place, task, one, group) for place, run in enumerate(runs)]
                clouds = [cloud for cloud in clouds if cloud.points or cloud.unread]
                if any(cloud.points for cloud in clouds):
                    sections.append(_section(one, group, clouds))
    return sections


def _rows(run: Run, task: str, one: Scatter) -> list[Mapping[str, str]]:
    """Return the verdicts on true images that have the first number."""
    rows = (row for row in run.verdicts.values() if row["task"] == task and row["swapped"] == "0")
    return [
        row
        for row in rows
        if (not one.endings or row["attribute"].endswith(one.endings)) and _number(row, one.across) is not None
    ]


def _number(row: Mapping[str, str], name: str) -> float | None:
    """Return a per-sample number of an answer, or its right or read value; None if it has none."""
    if name == "gold":
        text = row["gold"]
    elif name == "predicted":
        text = row["predicted"] if row["read"] == "1" else ""
    else:
        text = row.get(MEASURE + name, "")
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _groups(runs: Sequence[Run], task: str, one: Scatter) -> list[str]:
    if not one.by_attribute:
        return [""]
    return sorted({row["attribute"] for run in runs for row in _rows(run, task, one)})


def _cloud(run: Run, place: int, task: str, one: Scatter, group: str) -> Cloud:
    rows = [row for row in _rows(run, task, one) if not group or row["attribute"] == group]
    pairs = [(_number(row, one.across), _number(row, one.up)) for row in rows]
    points = [(x, y) for x, y in pairs if x is not None and y is not None]
    return Cloud(run.name, place, points, len(rows) - len(points))


def _section(one: Scatter, group: str, clouds: Sequence[Cloud]) -> Section:
    title = f"{one.title}: {group}" if group else one.title
    limits = axis_limits(clouds, one.identity)
    rows = [
        Row(
            cloud.name,
            [Cell(str(len(cloud.points))), Cell(str(cloud.unread)), Cell(str(beyond(cloud, limits)))],
            colour(cloud.place),
        )
        for cloud in clouds
    ]
    table = Table(title, ["answers drawn", "unread", "beyond the axes"], rows)
    line = " The dashed line is where both are equal." if one.identity else ""
    alt = (
        f"{title}: {one.up_title} against {one.across_title}, a panel for each of "
        f"{', '.join(cloud.name for cloud in clouds)}; the table below counts the points."
    )
    return Section(title, one.help + line, table, scatter_chart(one, clouds, limits), alt)


@dataclass(frozen=True)
class Limits:
    """Ranges of both axes, and whether they are logarithmic."""

    across: tuple[float, float]
    up: tuple[float, float]
    log: bool


def axis_limits(clouds: Sequence[Cloud], identity: bool) -> Limits:
    """Return axes that show the first numbers whole; one absurd second number does not squeeze the others.

    Args:
        clouds: The points of all runs.
        identity: Whether both axes have the same range; it is that of the true values with room around them.
    """
    across = [x for cloud in clouds for x, _ in cloud.points]
    up = [y for cloud in clouds for _, y in cloud.points]
    if not identity:
        return Limits(_padded(min(across), max(across)), _padded(min(up), max(up)), False)
    low, high = min(across), max(across)
    log = low > 0 and high / low > _DECADES
    if log:
        ends = (low / _ROOM, high * _ROOM)
    else:
        span = max(high - low, abs(high), 1e-9)
        ends = (max(min(low, min(up)), low - span / 2), min(max(high, max(up)), high + span))
        ends = _padded(*ends)
    return Limits(ends, ends, log)


def _padded(low: float, high: float) -> tuple[float, float]:
    pad = 0.05 * (high - low) or 0.5
    return low - pad, high + pad


def beyond(cloud: Cloud, limits: Limits) -> int:
    """Return the number of points outside of the axes."""
    return sum(not limits.up[0] <= y <= limits.up[1] for _, y in cloud.points)


def scatter_chart(one: Scatter, clouds: Sequence[Cloud], limits: Limits) -> str:
    """Draw the points, a panel for each run; points beyond the axes are triangles at the edge.

    Args:
        one: What is drawn.
        clouds: The points of each run.
        limits: Ranges of the axes.

    Returns:
        SVG text.
    """
    columns = min(len(clouds), 4)
    lines = math.ceil(len(clouds) / columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.7 * columns + 0.5, 2.7 * lines + 0.5))
        panels: Any = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for panel, cloud in zip(panels, clouds, strict=False):
            _fill(panel, cloud, limits, one.identity)
        for panel in panels[len(clouds) :]:
            panel.set_visible(False)
        figure.supxlabel(one.across_title, fontsize=9)
        figure.supylabel(one.up_title, fontsize=9)
        figure.tight_layout()
        return svg_text(figure)


def _fill(panel: Any, cloud: Cloud, limits: Limits, identity: bool) -> None:
    if identity:
        panel.plot(limits.up, limits.up, color=GREY, linestyle="--", linewidth=1.1)
    low, high = limits.up
    ink = colour(cloud.place)
    for marker, kept in (("o", lambda y: low <= y <= high), ("^", lambda y: y > high), ("v", lambda y: y < low)):
        points = [(x, min(max(y, low), high)) for x, y in cloud.points if kept(y)]
        if points:
            panel.plot(
                *zip(*points, strict=True),
                linestyle="",
                marker=marker,
                markersize=4,
                color=ink,
                alpha=0.55,
                clip_on=False,
            )
    if limits.log:
        panel.set_xscale("log")
        panel.set_yscale("log")
    panel.set_xlim(*limits.across)
    panel.set_ylim(*limits.up)
    panel.set_title(f"{cloud.name}\n{len(cloud.points)} read, {cloud.unread} unread", fontsize=9)
    panel.grid(color="#e5e5e5", linewidth=0.7)
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelbottom=True)
