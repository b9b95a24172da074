"""The paired comparisons with the first run, as tables of the page."""

from collections.abc import Sequence
from typing import Any

from medtune.data.labels import PROTOCOL
from medtune.reporting.plots import colour
from medtune.reporting.runs import Run
from medtune.reporting.summary import PROTOCOL_TITLES
from medtune.reporting.views import Cell, Row, Table, cell

_CLASSIFICATION = ["Accuracy, mean over sets: Δ", "Accuracy, over images: Δ", "Macro-F1, mean over sets: Δ"]
Differences = dict[str, dict[str, Any]]


def paired_tables(runs: Sequence[Run], differences: Differences) -> list[Table]:
    """For each protocol a line for each run but the first: both differences, the discordant counts, the p value.

    A classification has the difference in macro-F1 beside them.
    """
    base = runs[0].name
    columns = [
        "Accuracy, mean over attributes: Δ",
        "Accuracy, over questions: Δ",
        f"only {base} right",
        "only this model right",
        "McNemar p",
    ]
    tables = []
    for name, title in PROTOCOL_TITLES.items():
        rows = [
            Row(run.name, _cells(differences[run.name][name]), colour(place))
            for place, run in enumerate(runs)
            if name in differences.get(run.name, {})
        ]
        if rows:
            tables.append(Table(title, _CLASSIFICATION + columns[2:] if name == PROTOCOL else columns, rows))
    return tables


def paired_skips(differences: Differences) -> list[str]:
    """A sentence for each comparison that was not made."""
    return [
        f"{run}, {_title(name)}: not compared; {why}."
        for run, numbers in differences.items()
        for name, why in numbers.get("skipped", {}).items()
    ]


def p_text(value: float) -> str:
    """Write a p value with three decimals, the small ones as a bound."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _cells(number: dict[str, Any]) -> list[Cell]:
    test = number["mcnemar"]
    counts = [Cell(str(test[key])) for key in ("only_first", "only_second")]
    p_value = Cell(p_text(test["p_value"]), title=test["definition"])
    differences = [number, number["micro"], *([number["f1_macro"]] if "f1_macro" in number else [])]
    return [*(cell(one, against=0.0, sign=True) for one in differences), *counts, p_value]


def _title(name: str) -> str:
    return PROTOCOL_TITLES.get(name, name).lower()
