"""Confusion matrices of every run, for the page and as rows for a CSV file."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from medtune.data.labels import LABEL_SEPARATOR
from medtune.evaluation.confusion import Confusion, confusion
from medtune.evaluation.display import Display
from medtune.reporting.displays import displays
from medtune.reporting.plots import colour
from medtune.reporting.runs import Run

WIDEST = 15
"""Maximum number of values of a table on the page; a larger table is only in the CSV file."""


@dataclass(frozen=True)
class RunTable:
    """One run's confusion matrix and its colour in the report."""

    name: str
    colour: str
    table: Confusion


@dataclass(frozen=True)
class AttributeTables:
    """The confusion matrices of one attribute, one per run.

    Args:
        title: The protocol's title.
        attribute: The attribute.
        tables: One for each run that was asked; empty if ``wide`` is not 0.
        wide: Number of values if there are too many for the page, else 0.
    """

    title: str
    attribute: str
    tables: list[RunTable]
    wide: int = 0


def confusion_tables(runs: Sequence[Run]) -> list[AttributeTables]:
    """Return the tables of the page, by protocol and then by attribute."""
    found = []
    for task, display in _tabulated(runs).items():
        run_tables = [(place, run, _of_run(run, task, display)) for place, run in enumerate(runs)]
        for attribute in sorted({name for _, _, tables in run_tables for name in tables}):
            shown = [
                RunTable(run.name, colour(place), tables[attribute])
                for place, run, tables in run_tables
                if attribute in tables
            ]
            most = max(len(table.table.answered) for table in shown)
            wide = most if most > WIDEST else 0
            found.append(AttributeTables(display.title, attribute, [] if wide else shown, wide))
    return found


def _tabulated(runs: Sequence[Run]) -> dict[str, Display]:
    """Return the protocols whose answers are read as a value of the attribute."""
    return {
        name: display for name, display in displays(run.results for run in runs).items() if display.confusion != "none"
    }


def confusion_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Flatten every table to rows ``run, protocol, attribute, gold, answered, read, count``, zero counts too.

    An answer that could not be read has ``answered`` empty and ``read`` 0.
    """
    rows: list[dict[str, Any]] = []
    shown = _tabulated(runs)
    for run in runs:
        for task, display in shown.items():
            for attribute, table in _of_run(run, task, display).items():
                for gold, counts, unread in zip(table.gold, table.counts, table.unread, strict=True):
                    place = {"run": run.name, "protocol": task, "attribute": attribute, "gold": gold}
                    cells = [(value, 1, count) for value, count in zip(table.answered, counts, strict=True)]
                    for value, read, count in [*cells, ("", 0, unread)]:
                        rows.append({**place, "answered": value, "read": read, "count": count})
    return rows


def _of_run(run: Run, task: str, shown: Display) -> dict[str, Confusion]:
    """Map attribute to table, on the true images; each label of a multi-label set is a separate attribute."""
    groups: dict[str, list[dict[str, str]]] = {}
    for row in run.verdicts.values():
        if row["task"] == task and row["swapped"] == "0":
            groups.setdefault(row["attribute"], []).append(row)
    sets = run.results["vocabulary"].get("sets", {}) if shown.confusion == "classes" else {}
    tables: dict[str, Confusion] = {}
    for attribute, rows in sorted(groups.items()):
        known = sets.get(attribute)
        if known and known["task"] == "multi_label":
            tables |= _by_label(attribute, known["classes"], rows)
            continue
        read = [row["predicted"] if row["read"] == "1" else None for row in rows]
        tables[attribute] = confusion([row["gold"] for row in rows], read, known and known["classes"])
    return tables


def _by_label(attribute: str, classes: Sequence[str], rows: Sequence[dict[str, str]]) -> dict[str, Confusion]:
    """Return a table of present and absent for each label. An answer that names no class is unread for all labels."""
    tables = {}
    for name in classes:
        gold, read = ([_presence(row[key], name) for row in rows] for key in ("gold", "predicted"))
        answers = [answer if row["read"] == "1" else None for answer, row in zip(read, rows, strict=True)]
        tables[f"{attribute}: {name}"] = confusion(gold, answers, ("present", "absent"))
    return tables


def _presence(text: str, name: str) -> str:
    return "present" if name in text.split(LABEL_SEPARATOR) else "absent"
