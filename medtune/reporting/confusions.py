"""Confusion tables of every run, for the page and as table rows for a CSV file."""

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
"""Values of an attribute above which its table stands in the CSV file alone."""


@dataclass(frozen=True)
class RunTable:
    """One run's confusion table and its place in the report's colours."""

    name: str
    colour: str
    table: Confusion


@dataclass(frozen=True)
class AttributeTables:
    """One attribute's confusion tables, a table a run.

    Args:
        title: The protocol's title.
        attribute: The attribute.
        tables: One for each run that was asked; empty where ``wide``.
        wide: How many values there are, where they are too many for the page, else 0.
    """

    title: str
    attribute: str
    tables: list[RunTable]
    wide: int = 0


def confusion_tables(runs: Sequence[Run]) -> list[AttributeTables]:
    """Gather the tables that the page shows, by protocol and then by attribute."""
    found = []
    for task, display in _tabulated(runs).items():
        held = [(place, run, _of_run(run, task, display)) for place, run in enumerate(runs)]
        for attribute in sorted({name for _, _, tables in held for name in tables}):
            shown = [
                RunTable(run.name, colour(place), tables[attribute])
                for place, run, tables in held
                if attribute in tables
            ]
            most = max(len(table.table.answered) for table in shown)
            wide = most if most > WIDEST else 0
            found.append(AttributeTables(display.title, attribute, [] if wide else shown, wide))
    return found


def _tabulated(runs: Sequence[Run]) -> dict[str, Display]:
    """Protocols whose answers are read as a value of the attribute."""
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
    """Attribute to table, on the true images; each label of a multi-label set is an attribute of its own."""
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
    """Present and absent, for each label; an answer that names no class is unread for all of them."""
    tables = {}
    for name in classes:
        gold, read = ([_presence(row[key], name) for row in rows] for key in ("gold", "predicted"))
        answers = [answer if row["read"] == "1" else None for answer, row in zip(read, rows, strict=True)]
        tables[f"{attribute}: {name}"] = confusion(gold, answers, ("present", "absent"))
    return tables


def _presence(text: str, name: str) -> str:
    return "present" if name in text.split(LABEL_SEPARATOR) else "absent"
