"""Metrics of the question set during training: curves with intervals, and the answers."""

from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from medtune.reporting.plots import STYLE, colour, svg_text
from medtune.reporting.runs import Run
from medtune.reporting.views import Cell, Row, Section, Table

ACROSS = 3
"""Number of panels in a row."""
LONGEST_ANSWER = 300


def progress_sections(runs: Sequence[Run], answers: bool) -> list[Section]:
    """Return a section with curves, and a section with answers for each run that saved answers.

    Args:
        runs: The runs of the report.
        answers: Whether the page may show answers, which may contain texts about patients.
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
    """Return the lines of ``metrics.jsonl`` that hold metrics of the question set."""
    return [row for row in run.metrics if isinstance(row.get("intervals"), dict) and isinstance(row.get("step"), int)]


def monitored_names(runs: Sequence[Run]) -> list[str]:
    """Return the metrics with a value on any line, as ``protocol/metric``; only macro averages if there are any."""
    keys = {key for run in runs for row in validations(run) for key in row if "/" in key}
    names = sorted(key for key in keys if not key.startswith("validation_"))  # those are of the method
    return [name for name in names if name.endswith("_macro")] or names


def question_curves(runs: Sequence[Run], names: Sequence[str]) -> str:
    """Draw one panel per metric, one line per run, with intervals as bars.

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
    """Return the distances from each value to the ends of its interval; zero if there is no interval."""
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
    lines_with_value = [row for row in lines if isinstance(row.get(name), int | float)]
    if not lines_with_value:
        return Cell("")
    last, best = lines_with_value[-1], max(lines_with_value, key=lambda row: row[name])
    interval = last["intervals"].get(name)
    span = f"[{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""
    return Cell(f"{last[name]:.3f}", span, note=f"highest {best[name]:.3f} at step {best['step']}")


def _answers(runs: Sequence[Run]) -> list[Section]:
    """Return the saved answers of each run: one row per question, one column per validation."""
    found = []
    for run in runs:
        lines = [row for row in validations(run) if isinstance(row.get("answers"), list) and row["answers"]]
        if not lines:
            continue
        answers_by_line = [
            {answer["id"]: str(answer["answer"])[:LONGEST_ANSWER] for answer in row["answers"]} for row in lines
        ]
        ids = list(dict.fromkeys(name for answers in answers_by_line for name in answers))
        rows = [Row(name, [Cell(answers.get(name, "")) for answers in answers_by_line]) for name in ids]
        table = Table("", [f"step {row['step']}" for row in lines], rows)
        text = "Answers to the first questions of the set, as the run wrote them into metrics.jsonl."
        found.append(Section(f"Answers during training: {run.name}", text, table, first="Question"))
    return found
