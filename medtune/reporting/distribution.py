"""Modalities and tasks of a folder of FLARE's questions, by split (ME-VLIP, Fig. 3 and 4). No image is opened."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from medtune.data.json_text import decode_json, json_objects
from medtune.datasets.flare.answers import answer_task
from medtune.datasets.flare.layout import SPLITS, question_files
from medtune.datasets.flare.task_types import TASKS, task_type
from medtune.errors import DataError
from medtune.reporting.plots import STYLE, svg_text
from medtune.reporting.views import Cell, Row, Section, Table

Questions = Mapping[tuple[str, str, str], int]
"""(split, modality, task) to its number of questions."""
UNKNOWN = "unknown"
_COLOURS = (
    "#2563c4",
    "#e08a1e",
    "#2e9e4f",
    "#8e44ad",
    "#d1342f",
    "#17a2a8",
    "#8c6d31",
    "#e377c2",
    "#1a1a1a",
    "#9bbf1f",
)
_HATCHES = ("", "//", "..", "\\\\", "xx", "--", "oo", "++", "||", "**")
"""With the colours, so that modalities can be told apart without them."""


def count_questions(root: str | Path) -> dict[tuple[str, str, str], int]:
    """Count the questions of a folder in FLARE's layout.

    Args:
        root: Folder of all splits, of one split, or of one data set.

    Returns:
        (split, modality, task) to the number of questions. Spellings of a modality that differ in case, spaces or
        hyphens are one, under the most frequent spelling; a row without one has that of its folder.

    Raises:
        DataError: The folder holds no questions, or a row has no task; the message names file and row.
    """
    counts: Counter[tuple[str, str, str]] = Counter()
    spellings: dict[str, Counter[str]] = defaultdict(Counter)
    for file in question_files(Path(root).expanduser()):
        with file.path.open("rb") as opened:
            for number, (start, end) in enumerate(json_objects(file.path), start=1):
                where = f"{file.path}, item {number}"
                opened.seek(start)
                row = decode_json(opened.read(end - start), where)
                if not isinstance(row, dict):
                    raise DataError(f"{where}: a question must be an object, not a {type(row).__name__}.")
                modality = row.get("Modality") or file.category or UNKNOWN
                if not isinstance(modality, str):
                    raise DataError(f"{where}: 'Modality' must be a text; correct or remove the row.")
                key = re.sub(r"[\s_-]+", "", modality).lower() or UNKNOWN
                spellings[key][modality.strip() or UNKNOWN] += 1
                counts[file.split, key, answer_task(task_type(row.get("TaskType"), where), row.get("Answer"))] += 1
    if not counts:
        raise DataError(f"{root} holds no question; its question files are empty.")
    shown = {key: max(sorted(found), key=found.__getitem__) for key, found in spellings.items()}
    return {(split, shown[key], task): count for (split, key, task), count in counts.items()}


def distribution_sections(questions: Questions) -> list[Section]:
    """Return a section for modalities by split and one for tasks by split, each with its plot and table."""
    splits = [split for split in SPLITS if any(key[0] == split for key in questions)]
    totals: Counter[str] = Counter()
    for (_, modality, _), count in questions.items():
        totals[modality] += count
    modalities = sorted(totals, key=lambda name: (-totals[name], name))
    tasks = [task for task in TASKS if any(key[2] == task for key in questions)]
    by_modality = {(split, name): _sum(questions, split, modality=name) for split in splits for name in modalities}
    rows = [Row(name, [_cell(by_modality[split, name], questions, split) for split in splits]) for name in modalities]
    titles = [split.replace("_", " ") for split in splits]
    first = Section(
        "Modalities by split",
        "Number of questions of each imaging modality, and its share of the split.",
        Table("Modalities", titles, rows),
        modality_chart(by_modality, splits, modalities),
        f"Bars of the number of questions of each modality in {', '.join(titles)}; the table below has the numbers.",
        "Modality",
    )
    rows = [
        Row(
            f"{task.replace('_', ' ')}, {split.replace('_', ' ')}",
            [Cell(str(questions.get((split, name, task), 0) or "·")) for name in modalities],
        )
        for task in tasks
        for split in splits
    ]
    second = Section(
        "Tasks by split",
        "Number of questions of each task, stacked by imaging modality.",
        Table("Tasks", modalities, rows),
        task_chart(questions, splits, modalities, tasks),
        f"Stacked bars of the number of questions of each task in {', '.join(titles)}, one part for each modality; the "
        "table below has the numbers.",
        "Task and split",
    )
    return [first, second]


def _sum(questions: Questions, split: str, modality: str = "") -> int:
    return sum(count for key, count in questions.items() if key[0] == split and modality in ("", key[1]))


def _cell(count: int, questions: Questions, split: str) -> Cell:
    return Cell(f"{count:,}" if count else "·", f"{100 * count / _sum(questions, split):.1f}%" if count else "")


def modality_chart(counts: Mapping[tuple[str, str], int], splits: Sequence[str], modalities: Sequence[str]) -> str:
    """Draw the questions of each modality, a panel for each split (ME-VLIP, Fig. 3).

    Args:
        counts: (split, modality) to the number of questions.
        splits: Splits in the order of panels.
        modalities: Modalities from top to bottom.

    Returns:
        SVG text.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.6 * len(splits) + 1.4, 0.3 * len(modalities) + 1.0))
        panels: Any = figure.subplots(1, len(splits), sharey=True, squeeze=False)[0]
        for panel, split in zip(panels, splits, strict=True):
            values = [counts[split, name] for name in modalities]
            bars = panel.barh(range(len(modalities)), values, color=_COLOURS[0], height=0.7)
            panel.bar_label(bars, [f"{value:,}" if value else "" for value in values], padding=2, fontsize=7.5)
            panel.set_title(f"{split.replace('_', ' ')}, n = {sum(values):,}", fontsize=9.5)
            _plain_axes(panel, "x")
            panel.set_xlim(0, 1.25 * max(values) or 1)
        panels[0].set_yticks(range(len(modalities)), list(modalities))
        panels[0].invert_yaxis()
        figure.supxlabel("questions", fontsize=9)
        figure.tight_layout()
        return svg_text(figure)


def task_chart(questions: Questions, splits: Sequence[str], modalities: Sequence[str], tasks: Sequence[str]) -> str:
    """Draw the questions of each task, stacked by modality, a panel for each split (ME-VLIP, Fig. 4).

    Args:
        questions: (split, modality, task) to the number of questions.
        splits: Splits in the order of panels.
        modalities: Modalities in the order of colours.
        tasks: Tasks from left to right.

    Returns:
        SVG text.
    """
    style = {**STYLE, "hatch.linewidth": 0.6}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=((0.55 * len(tasks) + 1.0) * len(splits) + 1.0, 3.6))
        panels: Any = figure.subplots(1, len(splits), squeeze=False)[0]
        for panel, split in zip(panels, splits, strict=True):
            base = [0] * len(tasks)
            for at, name in enumerate(modalities):
                values = [questions.get((split, name, task), 0) for task in tasks]
                panel.bar(
                    range(len(tasks)),
                    values,
                    bottom=base,
                    width=0.75,
                    color=_COLOURS[at % len(_COLOURS)],
                    hatch=_HATCHES[at % len(_HATCHES)],
                    edgecolor="white",
                    linewidth=0.4,
                    label=name,
                )
                base = [low + value for low, value in zip(base, values, strict=True)]
            panel.set_xticks(
                range(len(tasks)), [task.replace("_", " ") for task in tasks], rotation=50, ha="right", fontsize=7.5
            )
            panel.set_title(split.replace("_", " "), fontsize=9.5)
            _plain_axes(panel, "y")
        panels[0].set_ylabel("questions")
        figure.legend(
            *panels[0].get_legend_handles_labels(),
            loc="lower center",
            ncols=4,
            frameon=False,
            bbox_to_anchor=(0.5, 1.0),
            fontsize=8,
        )
        figure.tight_layout()
        return svg_text(figure)


def _plain_axes(panel: Any, grid: str) -> None:
    panel.grid(axis=grid, color="#e5e5e5", linewidth=0.7)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
