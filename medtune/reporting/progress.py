"""What a run measured by its question set while it trained: curves with intervals, and the answers themselves."""

from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from medtune.reporting.plots import STYLE, colour, svg_text
from medtune.reporting.runs import Run
from medtune.reporting.views import Cell, Row, Section, Table

ACROSS = 3
"""Panels beside one another."""
LONGEST_ANSWER = 300


def progress_sections(runs: Sequence[Run], answers: bool) -> list[Section]:
    """Return a section of curves, and one of answers for each run that kept some.

    Args:
        runs: The runs of the report.
        answers: Whether answers may stand on the page, as other patients' texts may.
    """
    names = monitored_names(runs)
    if not names:
        return []
    found = [
        Section(
            "Question set during training",
            "A small fixed set of questions, answered at each validation; bars are 95% intervals. The table shows the "
            "last value and, beneath it, the best one.",
            _table(runs, names),
            question_curves(runs, names),
            "One panel for each metric of the question set, one line for each run, over the training steps.",
        )
    ]
    return found + (_answers(runs) if answers else [])


def validations(run: Run) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl`` that hold metrics of the question set."""
    return [row for row in run.metrics if isinstance(row.get("intervals"), dict) and isinstance(row.get("step"), int)]


def monitored_names(runs: Sequence[Run]) -> list[str]:
    """Metrics with a value on some line: ``protocol/metric``, macro averages alone where there are any."""
    names = sorted({key for run in runs for row in validations(run) for key in row if "/" in key})
    return [name for name in names if name.endswith("_macro")] or names


def question_curves(runs: Sequence[Run], names: Sequence[str]) -> str:
    """Draw one panel a metric, one line a run, with intervals as bars.

    Returns:
        SVG text.
    """
    across = min(ACROSS, len(names))
    down = -(-len(names) // across)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.2 * across + 0.4, 2.4 * down + 0.4))
        panels: Any = figure.subplots(down, across, squeeze=False).ravel()
        for panel, name in zip(panels, names, strict=False):
            for place, run in enumerate(runs):
                points = [row for row in validations(run) if isinstance(row.get(name), int | float)]
                if points:
                    panel.errorbar(
                        [row["step"] for row in points],
                        [row[name] for row in points],
                        yerr=_bars(points, name),
                        color=colour(place),
                        linewidth=1.2,
                        elinewidth=0.7,
                        capsize=2,
                        label=run.name,
                    )
            panel.set_title(name, fontsize=9)
            panel.set_xlabel("step")
            panel.grid(color="#e5e5e5", linewidth=0.7)
            panel.spines[["top", "right"]].set_visible(False)
        for panel in panels[len(names) :]:
            panel.set_visible(False)
        panels[0].legend(frameon=False, fontsize=8)
        figure.tight_layout()
        return svg_text(figure)


def _bars(points: Sequence[dict[str, Any]], name: str) -> list[list[float]]:
    """Distances from each value down and up to the ends of its interval; none where there is no interval."""
    ends = [row["intervals"].get(name) or [row[name], row[name]] for row in points]
    below = [max(0.0, row[name] - low) for row, (low, _) in zip(points, ends, strict=True)]
    return [below, [max(0.0, high - row[name]) for row, (_, high) in zip(points, ends, strict=True)]]


def _table(runs: Sequence[Run], names: Sequence[str]) -> Table:
    rows = []
    for place, run in enumerate(runs):
        lines = validations(run)
        if lines:
            rows.append(Row(run.name, [_cell(lines, name) for name in names], colour(place)))
    return Table("", list(names), rows)


def _cell(lines: Sequence[dict[str, Any]], name: str) -> Cell:
    held = [row for row in lines if isinstance(row.get(name), int | float)]
    if not held:
        return Cell("")
    last, best = held[-1], max(held, key=lambda row: row[name])
    interval = last["intervals"].get(name)
    span = f"[{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""
    return Cell(f"{last[name]:.3f}", span, note=f"highest {best[name]:.3f} at step {best['step']}")


def _answers(runs: Sequence[Run]) -> list[Section]:
    """The kept answers of each run: one row a question, one column a validation."""
    found = []
    for run in runs:
        kept = [row for row in validations(run) if isinstance(row.get("answers"), list) and row["answers"]]
        if not kept:
            continue
        told = [{answer["id"]: str(answer["answer"])[:LONGEST_ANSWER] for answer in row["answers"]} for row in kept]
        ids = list(dict.fromkeys(name for answers in told for name in answers))
        rows = [Row(name, [Cell(answers.get(name, "")) for answers in told]) for name in ids]
        table = Table("", [f"step {row['step']}" for row in kept], rows)
        text = "Answers to the first questions of the set, as the run wrote them into metrics.jsonl."
        found.append(Section(f"Answers during training: {run.name}", text, table, first="Question"))
    return found
