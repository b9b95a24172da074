"""Paired comparisons with the first run, as tables of the page."""

from collections.abc import Sequence
from typing import Any

from medtune.evaluation.display import Display
from medtune.reporting.displays import Displays, displays, packaged
from medtune.reporting.plots import colour
from medtune.reporting.runs import Run
from medtune.reporting.views import Cell, Row, Table, cell

Differences = dict[str, dict[str, Any]]


def paired_tables(runs: Sequence[Run], differences: Differences) -> list[Table]:
    """Return a table per protocol, with a row for each run except the first.

    A row holds the differences and, for right and wrong answers, McNemar's counts and p. The first two differences are
    the mean over attributes and over questions; the differences of a whole set follow.
    """
    base = runs[0].name
    tables = []
    for name, shown in displays(run.results for run in runs).items():
        by_run = {run.name: differences[run.name][name] for run in runs[1:] if name in differences.get(run.name, {})}
        if not by_run or not shown.headline:
            continue
        keys = list(dict.fromkeys(key for number in by_run.values() for key in _keys(number)))
        columns = [f"{title}: Δ" for title in _titles(shown, keys)]
        tested = any("mcnemar" in number for number in by_run.values())
        if tested:
            columns += [f"only {base} right", "only this model right", "McNemar p"]
        rows = [
            Row(run.name, _cells(by_run[run.name], keys, tested), colour(place))
            for place, run in enumerate(runs)
            if run.name in by_run
        ]
        tables.append(Table(shown.title, columns, rows))
    return tables


def paired_skips(differences: Differences, shown: Displays | None = None) -> list[str]:
    """Return a sentence for each comparison that was skipped; ``shown`` holds the protocols' displays."""
    shown = packaged() if shown is None else shown
    return [
        f"{run}, {_title(name, shown)}: not compared; {why}."
        for run, numbers in differences.items()
        for name, why in numbers.get("skipped", {}).items()
    ]


def p_text(value: float) -> str:
    """Format a p value with three decimals; values below 0.001 as ``< 0.001``."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _keys(number: dict[str, Any]) -> list[str]:
    """Return the names of the further differences in the entry of a protocol."""
    return [key for key, difference in number.items() if isinstance(difference, dict) and "interval" in difference]


def _titles(shown: Display, keys: Sequence[str]) -> list[str]:
    first = shown.table_title(shown.main)
    micro = shown.main.removesuffix("_macro") + "_micro"
    found = {"micro": shown.table_title(micro) if shown.has(micro) else f"{first}, over questions"}
    return [first, *(found[key] if key in found else _title_of(shown, key) for key in keys)]


def _title_of(shown: Display, key: str) -> str:
    return shown.table_title(key) if shown.has(key) else shown.titles.get(key, key)


def _cells(number: dict[str, Any], keys: Sequence[str], tested: bool) -> list[Cell]:
    cells = [cell(difference, against=0.0, sign=True) for difference in (number, *(number.get(key) for key in keys))]
    if tested:
        test = number["mcnemar"]
        cells += [Cell(str(test[key])) for key in ("only_first", "only_second")]
        cells.append(Cell(p_text(test["p_value"]), title=test["definition"]))
    return cells


def _title(name: str, shown: Displays) -> str:
    return shown[name].title.lower() if name in shown and shown[name].headline else name
