"""Numbers of groups of questions, such as domains and types: a table and a chart for each grouping of a protocol."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from medtune.evaluation.display import Grouping
from medtune.reporting.displays import displays
from medtune.reporting.plots import STYLE, colour, svg_text
from medtune.reporting.runs import Run
from medtune.reporting.summary import is_share, overall, percent
from medtune.reporting.views import Cell, Row, Section, Table, cell

ALL = "all questions"
Numbers = Mapping[str, Any]


def group_sections(runs: Sequence[Run]) -> list[Section]:
    """Return a section for each grouping that a protocol's display names and that the results of a run have."""
    sections = []
    for protocol, shown in displays(run.results for run in runs).items():
        for grouping in shown.groupings:
            found = {
                (place, run.name): _with_all(run, protocol, grouping)
                for place, run in enumerate(runs)
                if run.results["protocols"].get(protocol, {}).get(grouping.key)
            }
            if found:
                sections.append(_section(grouping, found))
    return sections


def _with_all(run: Run, protocol: str, grouping: Grouping) -> dict[str, Numbers]:
    """Return the numbers of each group, and those of all questions."""
    keys = [column.key for column in (grouping.column, *grouping.notes)]
    whole = {key: overall(run.results, protocol, f"{key}_micro") or overall(run.results, protocol, key) for key in keys}
    return {**run.results["protocols"][protocol][grouping.key], ALL: whole}


def _section(grouping: Grouping, found: Mapping[tuple[int, str], Mapping[str, Numbers]]) -> Section:
    names = [*dict.fromkeys(name for groups in found.values() for name in groups if name != ALL), ALL]
    rows = [
        Row(
            name.replace("_", " "),
            [_cell(groups.get(name), grouping) for groups in found.values()],
            baseline=name == ALL,
        )
        for name in names
    ]
    table = Table(grouping.title, [name for _, name in found], rows)
    models = ", ".join(name for _, name in found)
    alt = (
        f"{grouping.column.title} of {models} with its 95% interval for {', '.join(names)}; the table has the numbers."
    )
    return Section(grouping.title, grouping.help, table, group_chart(grouping, names, found), alt, first=grouping.first)


def _cell(numbers: Numbers | None, grouping: Grouping) -> Cell:
    if not numbers:
        return cell(None)
    notes = [
        f"{note.title} {percent(numbers[note.key])}" for note in grouping.notes if numbers.get(note.key) is not None
    ]
    shown = cell(numbers.get(grouping.column.key), against=grouping.column.against)
    return Cell(shown.value, shown.span, shown.n, ", ".join(notes), "", shown.tone, shown.title, shown.caution)


def group_chart(
    grouping: Grouping, names: Sequence[str], found: Mapping[tuple[int, str], Mapping[str, Numbers]]
) -> str:
    """Draw one number of each group with its interval, the runs below each other.

    Args:
        grouping: The groups' number.
        names: The groups, in the order of rows.
        found: Place of a run's colour and its name -> group -> numbers.

    Returns:
        SVG text.
    """
    step = 0.7 / len(found)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.2, len(names) * max(0.42, 0.17 * len(found) + 0.1) + 0.8))
        panel: Any = figure.subplots()
        for at, ((place, run), groups) in enumerate(found.items()):
            label = run
            for row, name in enumerate(names):
                number = groups.get(name, {}).get(grouping.column.key)
                if number is None or number["value"] is None:
                    continue
                scale = 100.0 if is_share(number["unit"]) else 1.0
                height = row + (at - (len(found) - 1) / 2) * step
                if number["interval"]:
                    ends = [scale * end for end in number["interval"]]
                    panel.plot(ends, [height, height], color=colour(place), linewidth=1.4)
                panel.plot([scale * number["value"]], [height], "o", markersize=4.5, color=colour(place), label=label)
                label = "_nolegend_"
        panel.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
        panel.set_ylim(len(names) - 0.5, -0.5)
        panel.set_xlabel(grouping.column.title)
        panel.grid(axis="x", color="#e5e5e5", linewidth=0.7)
        panel.spines[["top", "right", "left"]].set_visible(False)
        panel.tick_params(axis="y", length=0)
        panel.axhline(len(names) - 1.5, color="#cccccc", linewidth=0.8)
        figure.legend(loc="upper right", ncols=4, frameon=False, fontsize=8, bbox_to_anchor=(1, 1.06))
        figure.tight_layout()
        return svg_text(figure)
