"""What the page shows, as rows of ready texts: the template holds no arithmetic."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from medtune.reporting.plots import colour
from medtune.reporting.runs import Run
from medtune.reporting.summary import (
    PROTOCOL_TITLES,
    RETENTION_TITLES,
    asked_protocols,
    baseline,
    headline_numbers,
    interval,
    overall,
    percent,
    swapped,
)

METRIC_TITLES = {
    "accuracy_macro": "Accuracy, mean over attributes",
    "accuracy_micro": "Accuracy, over questions",
    "balanced_accuracy_macro": "Balanced accuracy",
    "unread": "Unread answers",
    "f1_macro": "Macro-F1, mean over sets",
    "out_of_vocabulary": "Out of vocabulary",
    "chance_macro": "Chance, mean over attributes",
    "chance_micro": "Chance, over questions",
    "majority_macro": "Majority, mean over attributes",
    "majority_micro": "Majority, over questions",
    "majority_f1_macro": "Majority, macro-F1, mean over sets",
    "drop_macro": "Cost of the swap",
    "answer_differs": "Other right answer",
    "auc_macro": "Response ranking: AUC",
    "own_above_other_macro": "Response ranking: own image above another",
    "margin_macro": "Response ranking: margin",
    "overlap_macro": "Response ranking: overlap",
    "probability_own_macro": "Response ranking: probability, own image",
    "probability_other_macro": "Response ranking: probability, another image",
}
TABLE_METRICS = ("accuracy_macro", "accuracy_micro", "balanced_accuracy_macro", "unread")
CLASSIFICATION_TITLES = {
    "accuracy_macro": "Accuracy, mean over sets",
    "accuracy_micro": "Accuracy, over images",
    "f1_macro": METRIC_TITLES["f1_macro"],
    "out_of_vocabulary": METRIC_TITLES["out_of_vocabulary"],
}
NOTED = {
    "balanced_accuracy": "balanced",
    "f1_macro": "F1",
    "label_accuracy": "per label",
    "quadratic_kappa": "κ",
    "auc_macro": "AUC",
}
"""Numbers of one attribute or set that stand in small letters beneath its accuracy."""


@dataclass(frozen=True)
class Cell:
    """One number of a table.

    Args:
        value: The number.
        span: Its interval.
        n: How many answers it rests on.
        note: A small line beneath.
        note_kind: ``change`` for a difference to the first run, else empty.
        tone: ``good`` or ``bad`` where the interval lies clear of what it is compared with, else empty.
        title: The number's definition, shown on hover.
    """

    value: str
    span: str = ""
    n: str = ""
    note: str = ""
    note_kind: str = ""
    tone: str = ""
    title: str = ""


@dataclass(frozen=True)
class Row:
    """A line of a table: a label, the colour of its run if it is one, its cells."""

    label: str
    cells: list[Cell]
    colour: str = ""
    baseline: bool = False


@dataclass(frozen=True)
class Table:
    """A table with its heading and the sentence beneath it."""

    title: str
    columns: list[str]
    rows: list[Row]
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the page that its writer adds, below the headline.

    Args:
        title: Its heading.
        help: The sentences beneath it.
        table: Numbers, if any.
        picture: A plot as SVG text; empty for none.
        alt: What the plot shows, in words.
        first: Heading of the table's first column.
    """

    title: str
    help: str
    table: Table | None = None
    picture: str = ""
    alt: str = ""
    first: str = "Model"


def cell(number: dict[str, Any] | None, *, against: float | None = None, sign: bool = False, change: str = "") -> Cell:
    """Write a number as a cell; ``against`` colours it when its interval lies above or below that value."""
    tone = ""
    if number is not None and number["interval"] and against is not None and number["higher_is_better"] is not None:
        low, high = number["interval"]
        above, below = (low > against, high < against)
        good, bad = (above, below) if number["higher_is_better"] else (below, above)
        tone = "good" if good else "bad" if bad else ""
    return Cell(
        percent(number, sign=sign),
        interval(number, sign=sign),
        "" if number is None else f"n={number['n']}",
        change,
        "change" if change else "",
        tone,
        "" if number is None else number["definition"],
    )


def headline(runs: Sequence[Run], differences: dict[str, dict[str, Any]]) -> Table:
    """Every run in one line: the numbers of each protocol and retention, with the difference to the first run."""
    results = [run.results for run in runs]
    shown = headline_numbers(results)
    retained = any(one["retention"] for one in results)
    rows = []
    for place, run in enumerate(runs):
        changes = differences.get(run.name, {})
        cells = [
            cell(
                overall(run.results, name, metric),
                against=_value(baseline([run.results], "majority", name, metric)),
                change=_change(_part(changes.get(name), metric)),
            )
            for name, metric in shown
        ]
        if retained:
            cells.append(cell(run.results["retention"].get("composite"), change=_change(changes.get("retention"))))
        rows.append(Row(run.name, cells, colour(place)))
    for label, kind in (("majority of the training split", "majority"), ("chance", "chance")):
        cells = [cell(baseline(results, kind, name, metric)) for name, metric in shown]
        rows.append(Row(label, cells + [Cell("")] * retained, baseline=True))
    return Table("Headline", [*shown.values(), *(["Instruction retention"] if retained else [])], rows)


def protocol_tables(runs: Sequence[Run]) -> list[Table]:
    """For each protocol the accuracy over attributes and over questions, balanced accuracy, and unread answers.

    For a classification it is macro-F1 in place of balanced accuracy, and answers out of vocabulary.
    """
    tables = []
    for name in asked_protocols([run.results for run in runs]):
        plain = {metric: METRIC_TITLES[metric] for metric in TABLE_METRICS}
        metrics = CLASSIFICATION_TITLES if name == "classification" else plain
        rows = [
            Row(run.name, [cell(overall(run.results, name, metric)) for metric in metrics], colour(place))
            for place, run in enumerate(runs)
            if name in run.results["protocols"]
        ]
        known = next(run.results for run in runs if name in run.results["protocols"])
        for label, stem in (("majority of the training split", "majority"), ("chance", "chance")):
            pair = [cell(overall(known, name, f"{stem}_{kind}")) for kind in ("macro", "micro")]
            rows.append(Row(label, [*pair, Cell(""), Cell("")], baseline=True))
        tables.append(Table(PROTOCOL_TITLES[name], list(metrics.values()), rows))
    return tables


def attribute_tables(runs: Sequence[Run]) -> list[Table]:
    """For each protocol a line for each attribute: accuracy of every run, balanced accuracy beneath, the baselines."""
    tables = []
    for name in asked_protocols([run.results for run in runs]):
        held = [run for run in runs if name in run.results["protocols"]]
        attributes = {run.name: run.results["protocols"][name]["attributes"] for run in held}
        first = attributes[held[0].name]
        rows = []
        for attribute, base in first.items():
            majority = base["majority"]
            cells = [_attribute_cell(attributes[run.name].get(attribute, {}), _value(majority)) for run in held]
            cells += [Cell(percent(majority), title=majority["definition"]), Cell(percent(base["chance"]))]
            rows.append(Row(attribute, [*cells, Cell(str(base["accuracy"]["n"]))]))
        columns = [*(run.name for run in held), "majority", "chance", "n"]
        tables.append(Table(PROTOCOL_TITLES[name], columns, rows))
    return tables


def retention_table(runs: Sequence[Run]) -> Table | None:
    """The rates of answers in the asked form, before and after tuning."""
    names = [name for name in RETENTION_TITLES if any(name in run.results["retention"] for run in runs)]
    if not names:
        return None
    rows = [
        Row(run.name, [cell(run.results["retention"].get(name)) for name in names], colour(place))
        for place, run in enumerate(runs)
    ]
    return Table("Instruction retention", [RETENTION_TITLES[name] for name in names], rows)


def swapped_table(runs: Sequence[Run]) -> Table | None:
    """Accuracy with true and with swapped images, and what the swap costs."""
    protocols = asked_protocols([run.results for run in runs])
    held = [name for name in protocols if any(swapped(run.results, name, "drop_macro") for run in runs)]
    if not held:
        return None
    columns = [f"{PROTOCOL_TITLES[name]}: {text}" for name in held for text in ("true", "swapped", "cost")]
    rows = []
    for place, run in enumerate(runs):
        cells = []
        for name in held:
            cells.append(cell(overall(run.results, name, "accuracy_macro")))
            cells.append(cell(swapped(run.results, name, "accuracy_macro")))
            cells.append(cell(swapped(run.results, name, "drop_macro"), against=0.0, sign=True))
        rows.append(Row(run.name, cells, colour(place)))
    shares = (swapped(run.results, held[0], "answer_differs") for run in runs)
    share = next((one for one in shares if one), None)
    return Table("Swapped images", columns, rows, percent(share))


def definitions(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Name and definition of every kind of overall number, each once."""
    found: dict[str, str] = {}
    for run in runs:
        for protocol in run.results["protocols"].values():
            for name, number in {**protocol["overall"], **(protocol["swapped"] or {})}.items():
                found.setdefault(METRIC_TITLES.get(name, name), number["definition"])
        for name, number in run.results["retention"].items():
            found.setdefault(f"Retention, {RETENTION_TITLES.get(name, name)}", number["definition"])
    return list(found.items())


def _attribute_cell(numbers: dict[str, Any], majority: float | None) -> Cell:
    if not numbers:
        return cell(None)
    accuracy = cell(numbers["accuracy"], against=majority)  # n has a column of its own
    notes = [f"{title} {percent(numbers[name])}" for name, title in NOTED.items() if name in numbers]
    return replace(accuracy, n="", note=", ".join(notes))


def _part(number: dict[str, Any] | None, metric: str) -> dict[str, Any] | None:
    """The difference in macro-F1 stands inside that in accuracy."""
    return number if number is None or metric == "accuracy_macro" else number.get(metric)


def _change(number: dict[str, Any] | None) -> str:
    if number is None:
        return ""
    span = interval(number, sign=True)
    return f"Δ {percent(number, sign=True)}" + (f" ({span})" if span else "")


def _value(number: dict[str, Any] | None) -> float | None:
    return None if number is None else number["value"]
