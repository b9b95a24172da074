"""Sections of a sweep's report: numbers over several seeds of each variant, and numbers against a swept value."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from medtune.evaluation.display import Column
from medtune.reporting import plots
from medtune.reporting.displays import Displays, packaged
from medtune.reporting.summary import MISSING, written
from medtune.reporting.views import Cell, Row, Section, Table, cell

Spreads = Mapping[str, Mapping[str, dict[str, Any]]]
"""Variant title -> number name -> ``{mean, deviation, seeds, values}``, as ``seeds.json`` holds them.

A number that is not a share also has its ``unit``.
"""


def seeds_section(
    spreads: Spreads,
    axis: str = "",
    places: Mapping[str, float] | None = None,
    shown: Displays | None = None,
) -> Section | None:
    """Describe a sweep over seeds, over a value, or over both.

    Args:
        spreads: The numbers of every variant.
        axis: Name of the swept value; empty draws no plot.
        places: Variant title to its value; a variant without a value is drawn as a horizontal line.
        shown: The protocols' displays; None takes the packaged ones.

    Returns:
        The section; None if each variant has one seed and there is no plot.
    """
    columns = _columns(spreads, packaged() if shown is None else shown)
    titles = {name: column.title for name, column in columns.items()}
    most = max((number["seeds"] for numbers in spreads.values() for number in numbers.values()), default=0)
    chart = plots.sweep_chart(spreads, axis, places or {}, titles) if axis else None
    if most < 2 and chart is None:
        return None
    help = "Each number is the mean over attributes, or over sets."
    if most > 1:
        help += (
            f" Mean and standard deviation over up to {most} training seeds, which is not the interval over questions; "
            "numbers elsewhere on this page are of the first seed unless they say otherwise."
        )
    title = f"By {axis}" if axis else "Over seeds"
    alt = f"Accuracies and retention against {axis}, with deviations over seeds"
    return Section(title, help, _table(spreads, columns) if most > 1 else None, chart or "", alt)


def sets_section(spreads: Spreads, shown: Displays | None = None) -> Section | None:
    """Show the numbers of each set over seeds, for example accuracy and macro-F1 (VITask, Table 2).

    Args:
        spreads: As for :func:`seeds_section`; a set's numbers are named ``<protocol>/<set>/<number>``.
        shown: The protocols' displays; None takes the packaged ones.

    Returns:
        The section; None for one seed or without sets.
    """
    names = dict.fromkeys(name for numbers in spreads.values() for name in numbers)
    columns: dict[str, Column] = {}
    for protocol, display in (packaged() if shown is None else shown).items():
        beginning = f"{protocol}/"
        keys = (name.removeprefix(beginning) for name in names if name.startswith(beginning))
        sets = sorted({name.rpartition("/")[0] for name in keys if "/" in name})
        columns |= {
            f"{protocol}/{name}/{column.key}": replace(column, title=f"{name}: {column.title}")
            for name in sets
            for column in display.sets
        }
    found = [number for numbers in spreads.values() for name, number in numbers.items() if name in columns]
    if max((number["seeds"] for number in found), default=0) < 2:
        return None
    help = "Mean and standard deviation over training seeds; accuracy of a multi-label set is the exact match."
    return Section("Over seeds, by set", help, replace(_table(spreads, columns), title="Sets"))


def differences_section(
    differences: Mapping[str, Mapping[str, Any]], base: str, shown: Displays | None = None
) -> Section | None:
    """Show the paired differences of every row from the base row, with the answers of all seeds pooled.

    Args:
        differences: Row title to its numbers by protocol (:func:`medtune.reporting.comparison.compare_over_seeds`).
        base: Title of the base row, which is subtracted.
        shown: The protocols' displays; None takes the packaged ones.

    Returns:
        The section; None if there are no differences.
    """
    columns = [
        (name, column.key if place else "", column.title)
        for name, display in (packaged() if shown is None else shown).items()
        for place, column in enumerate(display.headline)
        if any(name in numbers and (not place or column.key in numbers[name]) for numbers in differences.values())
    ]
    if not columns:
        return None
    rows = []
    for variant, numbers in differences.items():
        chosen = [numbers.get(name, {}).get(part) if part else numbers.get(name) for name, part, _ in columns]
        rows.append(Row(variant, [cell(number, against=0.0, sign=True) for number in chosen]))
    help = (
        f"Minus {base}, paired by question and seed. The interval is by a bootstrap over images, each with the answers "
        "of every seed: it is about the choice of images, not of seeds."
    )
    return Section("Differences over seeds", help, Table("Differences", [title for *_, title in columns], rows))


def _columns(spreads: Spreads, shown: Displays) -> dict[str, Column]:
    """Return the columns by name of their number, in the order of the page's tables."""
    columns = {f"{name}/{column.key}": column for name, display in shown.items() for column in display.over_seeds}
    columns["retention"] = Column("retention", "Instruction retention")
    return {name: column for name, column in columns.items() if any(name in numbers for numbers in spreads.values())}


def _table(spreads: Spreads, columns: Mapping[str, Column]) -> Table:
    rows = [
        Row(variant, [_cell(numbers, name, column) for name, column in columns.items()])
        for variant, numbers in spreads.items()
    ]
    return Table("Over seeds", [column.title for column in columns.values()], rows)


def _cell(numbers: Mapping[str, dict[str, Any]], name: str, column: Column) -> Cell:
    spread = numbers.get(name)
    if spread is None:
        return Cell(MISSING)
    unit = spread.get("unit", "fraction")
    span = "" if spread["deviation"] is None else f"± {written(spread['deviation'], unit)}"
    beneath = numbers.get(name.removesuffix(column.key) + column.note) if column.note else None
    note = "" if beneath is None else f"{column.note_title} {written(beneath['mean'], beneath.get('unit', 'fraction'))}"
    runs = f"{spread['seeds']} seed{'' if spread['seeds'] == 1 else 's'}"
    values = ", ".join(written(value, unit) for value in spread["values"])
    return Cell(written(spread["mean"], unit), span, runs, note, title=values)
