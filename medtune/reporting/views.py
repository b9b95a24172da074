"""The content of the page as rows of formatted texts, so that the template needs no arithmetic."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from medtune.evaluation.display import Column, Display
from medtune.reporting.displays import displays
from medtune.reporting.plots import colour
from medtune.reporting.runs import Run
from medtune.reporting.summary import (
    asked_protocols,
    baseline,
    headline_numbers,
    interval,
    overall,
    percent,
    swapped,
)


@dataclass(frozen=True)
class Cell:
    """One number of a table.

    Args:
        value: The number.
        span: Its interval.
        n: Number of answers.
        note: A small line below the number.
        note_kind: ``change`` for a difference from the first run, else empty.
        tone: ``good`` or ``bad`` if the interval does not contain the value that it is compared with, else empty.
        title: The number's definition, shown on hover.
        caution: A sentence that a reader needs beside the number; empty for none.
    """

    value: str
    span: str = ""
    n: str = ""
    note: str = ""
    note_kind: str = ""
    tone: str = ""
    title: str = ""
    caution: str = ""


@dataclass(frozen=True)
class Row:
    """A row of a table: a label, its cells, and the colour of the run if the row is a run."""

    label: str
    cells: list[Cell]
    colour: str = ""
    baseline: bool = False


@dataclass(frozen=True)
class Table:
    """A table with its heading and the sentence below it."""

    title: str
    columns: list[str]
    rows: list[Row]
    note: str = ""


@dataclass(frozen=True)
class Option:
    """One of the texts that an example shows side by side.

    Args:
        title: Whose text it is.
        text: The text.
        note: A small line below it, for example a score.
        tone: ``good`` or ``bad`` for a coloured edge, else empty.
    """

    title: str
    text: str
    note: str = ""
    tone: str = ""


@dataclass(frozen=True)
class Example:
    """Images with texts beside them.

    Args:
        title: Its heading.
        pictures: Data URIs of the images; :func:`medtune.reporting.gallery.thumbnail` makes them.
        options: The texts.
        trouble: Why an image is missing; empty if none is.
        note: A line below the texts.
    """

    title: str
    pictures: Sequence[str]
    options: Sequence[Option]
    trouble: str = ""
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A picture of a section, larger than those of an example.

    Args:
        uri: Data URI of the picture; empty if there is none.
        alt: What it shows, in words.
        caption: The line below it.
    """

    uri: str
    alt: str
    caption: str


@dataclass(frozen=True)
class Section:
    """A further section of the page, below the headline.

    Args:
        title: Its heading.
        help: The sentences below the heading.
        table: Numbers, if any.
        picture: A plot as SVG text; empty for none.
        alt: What the plot shows, in words.
        first: Heading of the table's first column.
        examples: Images with texts, below the table. A page with examples contains data of patients.
        pictures: Further pictures, side by side below the table.
        across: Number of pictures in a row.
    """

    title: str
    help: str
    table: Table | None = None
    picture: str = ""
    alt: str = ""
    first: str = "Model"
    examples: Sequence[Example] = ()
    pictures: Sequence[Picture] = ()
    across: int = 3


def cell(number: dict[str, Any] | None, *, against: float | None = None, sign: bool = False, change: str = "") -> Cell:
    """Format a number as a cell; it gets a colour if its interval lies above or below the value ``against``."""
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
        "" if number is None else number.get("caution", ""),
    )


def headline(runs: Sequence[Run], differences: dict[str, dict[str, Any]]) -> Table:
    """Return a table with a row for each run: numbers and retention, with the difference from the first run."""
    results = [run.results for run in runs]
    shown, found = headline_numbers(results), displays(results)
    retained = any(run_results["retention"] for run_results in results)
    rows = []
    for place, run in enumerate(runs):
        changes = differences.get(run.name, {})
        cells = [
            cell(
                overall(run.results, name, metric),
                against=_value(baseline([run.results], "majority", name, column)),
                change=_change(_part(changes.get(name), metric, found[name])),
            )
            for (name, metric), column in shown.items()
        ]
        if retained:
            cells.append(cell(run.results["retention"].get("composite"), change=_change(changes.get("retention"))))
        rows.append(Row(run.name, cells, colour(place)))
    for label, kind in (("majority of the training split", "majority"), ("chance", "chance")):
        cells = [cell(baseline(results, kind, name, column)) for (name, _), column in shown.items()]
        rows.append(Row(label, cells + [Cell("")] * retained, baseline=True))
    titles = [column.title for column in shown.values()]
    return Table("Headline", [*titles, *(["Instruction retention"] if retained else [])], rows)


def protocol_tables(runs: Sequence[Run]) -> list[Table]:
    """Return a table per protocol: a row for each run, then the baselines that are known."""
    results = [run.results for run in runs]
    shown = displays(results)
    tables = []
    for name in asked_protocols(results):
        every = shown[
            name
        ].table  # a number that no run has, such as a judge's score that was not asked for, has no column
        columns = [column for column in every if any(overall(run, name, column.key) for run in results)] or every
        rows = [
            Row(
                run.name,
                [own_cell(overall(run.results, name, column.key), column) for column in columns],
                colour(place),
            )
            for place, run in enumerate(runs)
            if name in run.results["protocols"]
        ]
        for label, kind in (("majority of the training split", "majority"), ("chance", "chance")):
            baseline_keys = [column.majority if kind == "majority" else column.chance for column in columns]
            if any(baseline_keys):
                cells = [
                    cell(baseline(results, kind, name, column)) if key else Cell("")
                    for key, column in zip(baseline_keys, columns, strict=True)
                ]
                rows.append(Row(label, cells, baseline=True))
        tables.append(Table(shown[name].title, [column.title for column in columns], rows))
    return tables


def protocol_help(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Return the title of each protocol that was asked, with its help (how it asks, what counts as right)."""
    results = [run.results for run in runs]
    shown = displays(results)
    return [(shown[name].title, shown[name].help) for name in asked_protocols(results) if shown[name].help]


def notes_help(runs: Sequence[Run]) -> list[str]:
    """Return the explanations of the small numbers of an attribute, each sentence once."""
    results = [run.results for run in runs]
    shown = displays(results)
    return list(dict.fromkeys(shown[name].notes_help for name in asked_protocols(results) if shown[name].notes_help))


def legends(runs: Sequence[Run]) -> list[str]:
    """Return the explanations of marks at answers that need one."""
    examples = (display.examples for display in displays(run.results for run in runs).values())
    return [display.legend for display in examples if display is not None and display.legend]


def attribute_tables(runs: Sequence[Run]) -> list[Table]:
    """Return a table per protocol with a row for each attribute: every run's number with notes, then the baselines."""
    results = [run.results for run in runs]
    shown = displays(results)
    tables = []
    for name in asked_protocols(results):
        column = shown[name].attribute
        if column is None:
            continue
        asked_runs = [run for run in runs if name in run.results["protocols"]]
        attributes = {run.name: run.results["protocols"][name]["attributes"] for run in asked_runs}
        baselines = {"majority": column.majority, "chance": column.chance}
        known = {title: key for title, key in baselines.items() if key}
        rows = []
        for attribute, base in attributes[asked_runs[0].name].items():
            majority = base.get(column.majority)
            cells = [
                _attribute_cell(attributes[run.name].get(attribute, {}), majority, shown[name]) for run in asked_runs
            ]
            for title, key in known.items():
                number = base.get(key)
                why = number["definition"] if number and title == "majority" else ""
                cells.append(Cell(percent(number), title=why))
            rows.append(Row(attribute, [*cells, Cell(str(base[column.key]["n"]))]))
        tables.append(Table(shown[name].title, [*(run.name for run in asked_runs), *known, "n"], rows))
    return tables


def retention_table(runs: Sequence[Run]) -> Table | None:
    """Return the table of instruction retention: each run's rates of answers in the requested form."""
    components = dict.fromkeys(name for run in runs for name in run.results["retention"] if name != "composite")
    if not components:
        return None
    found = displays(run.results for run in runs)
    names = [*components, "composite"]
    rows = [
        Row(run.name, [cell(run.results["retention"].get(name)) for name in names], colour(place))
        for place, run in enumerate(runs)
    ]
    titles = [found[name].retention or name if name in found else name for name in names]
    return Table("Instruction retention", titles, rows)


def swapped_table(runs: Sequence[Run]) -> Table | None:
    """Return the table of the swap control: the first headline number with true and swapped images, and the cost."""
    results = [run.results for run in runs]
    shown = displays(results)
    swapped_protocols = [
        name
        for name in asked_protocols(results)
        if any(swapped(run_results, name, "drop_macro") for run_results in results)
    ]
    if not swapped_protocols:
        return None
    columns = [f"{shown[name].title}: {text}" for name in swapped_protocols for text in ("true", "swapped", "cost")]
    rows = []
    for place, run in enumerate(runs):
        cells = []
        for name in swapped_protocols:
            cells.append(cell(overall(run.results, name, shown[name].main)))
            cells.append(cell(swapped(run.results, name, shown[name].main)))
            cells.append(cell(swapped(run.results, name, "drop_macro"), against=0.0, sign=True))
        rows.append(Row(run.name, cells, colour(place)))
    shares = (swapped(run.results, swapped_protocols[0], "answer_differs") for run in runs)
    share = next((share for share in shares if share), None)
    return Table("Swapped images", columns, rows, percent(share))


def definitions(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Return name and definition of every overall number, each once."""
    shown = displays(run.results for run in runs)
    found: dict[str, str] = {}
    for run in runs:
        for protocol, scored in run.results["protocols"].items():
            for name, number in {**scored["overall"], **(scored["swapped"] or {})}.items():
                found.setdefault(shown[protocol].definition_title(name), number["definition"])
        for protocol, probes in run.results.get("robustness", {}).items():
            for probe, numbers in probes.items():
                for name, number in numbers.items():
                    title = f"{shown[protocol].title}, {probe.replace('_', ' ')}: {name.replace('_', ' ')}"
                    found.setdefault(title, number["definition"])
        for name, number in run.results["retention"].items():
            title = shown[name].retention if name in shown else ""
            found.setdefault(f"Retention, {title or name}", number["definition"])
    return list(found.items())


def own_cell(number: dict[str, Any] | None, column: Column) -> Cell:
    """Format a number as its column says."""
    return cell(number, against=column.against, sign=column.sign)


def _attribute_cell(numbers: dict[str, Any], majority: dict[str, Any] | None, shown: Display) -> Cell:
    if not numbers or shown.attribute is None:
        return cell(None)
    number = cell(numbers[shown.attribute.key], against=_value(majority))  # n has its own column
    notes = [f"{note.title} {percent(numbers[note.key])}" for note in shown.notes if note.key in numbers]
    cautions = [f"{note.title} {numbers[note.key]['caution']}" for note in shown.notes if _cautioned(numbers, note.key)]
    return replace(number, n="", note=", ".join(notes), caution="; ".join(cautions))


def _cautioned(numbers: dict[str, Any], key: str) -> bool:
    return bool(numbers.get(key, {}).get("caution"))


def _part(number: dict[str, Any] | None, metric: str, shown: Display) -> dict[str, Any] | None:
    """Return the difference of a headline number; those after the first are in the entry of the first."""
    return number if number is None or metric == shown.main else number.get(metric)


def _change(number: dict[str, Any] | None) -> str:
    if number is None:
        return ""
    span = interval(number, sign=True)
    return f"Δ {percent(number, sign=True)}" + (f" ({span})" if span else "")


def _value(number: dict[str, Any] | None) -> float | None:
    return None if number is None else number["value"]
