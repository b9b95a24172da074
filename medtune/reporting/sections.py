"""Sections for a single protocol: densities and numbers of each run, then of each set (VITask, Fig. 4)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from medtune.evaluation.display import Densities
from medtune.reporting import plots
from medtune.reporting.displays import displays
from medtune.reporting.runs import Run
from medtune.reporting.summary import MISSING, percent
from medtune.reporting.views import Cell, Row, Section, Table, own_cell


def protocol_sections(runs: Sequence[Run]) -> list[Section]:
    """Return two sections (by run, by set) for each protocol that has densities and that a run was asked."""
    found = []
    for protocol, shown in displays(run.results for run in runs).items():
        by_run = {
            run.name: (place, run.results["protocols"][protocol])
            for place, run in enumerate(runs)
            # With an empty question file a protocol has no pairs.
            if run.results["protocols"].get(protocol, {}).get("attributes")
        }
        if by_run and shown.densities is not None:
            found += _sections(shown.title, shown.densities, by_run)
    return found


def _sections(title: str, shown: Densities, by_run: dict[str, tuple[int, dict[str, Any]]]) -> list[Section]:
    rows = [
        Row(
            name,
            [own_cell(numbers["overall"].get(f"{column.key}_macro"), column) for column in shown.columns],
            plots.colour(place),
        )
        for name, (place, numbers) in by_run.items()
    ]
    densities = {name: _mean_density(numbers["densities"]) for name, (_, numbers) in by_run.items()}
    chart = plots.density_chart(densities, {name: place for name, (place, _) in by_run.items()})
    table = Table(title, [column.title for column in shown.columns], rows)
    first = Section(title, f"{shown.help} Means over sets.", table, chart, shown.alt)
    return [first, _by_set(title, shown, {name: numbers["attributes"] for name, (_, numbers) in by_run.items()})]


def _mean_density(sets: dict[str, Any]) -> tuple[list[float], list[float]]:
    own, other = (
        np.mean([densities[side] for densities in sets.values()], axis=0).tolist() for side in ("own", "other")
    )
    return own, other


def _by_set(title: str, shown: Densities, numbers: dict[str, dict[str, Any]]) -> Section:
    rows = []
    for name in sorted({name for sets in numbers.values() for name in sets}):
        cells = []
        for sets in numbers.values():
            numbers_of_set = sets.get(name)
            note = (
                ""
                if numbers_of_set is None
                else f"{shown.set_note.title} {percent(numbers_of_set[shown.set_note.key])}"
            )
            cells.append(
                Cell(MISSING)
                if numbers_of_set is None
                else replace(own_cell(numbers_of_set[shown.set_column.key], shown.set_column), note=note)
            )
        rows.append(Row(name, cells))
    return Section(f"{title} for each set", shown.set_help, Table("Sets", list(numbers), rows), first="Set")
