"""Formats numbers, and makes the plain-text table for a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from medtune.evaluation.display import Column
from medtune.reporting.displays import displays

MISSING = "–"
MINUS = "−"


def is_share(unit: str) -> bool:
    """Return whether numbers of a unit are shares, which are shown in percent."""
    return unit in ("fraction", "difference of fractions")


def written(value: float, unit: str, *, sign: bool = False) -> str:
    """Format a value: a share in percent with one decimal, another unit with two decimals."""
    share = is_share(unit)
    return f"{100 * value if share else value:{'+' if sign else ''}.{1 if share else 2}f}".replace("-", MINUS)


def percent(number: Mapping[str, Any] | None, *, sign: bool = False) -> str:
    """Format a number's value, a share in percent; a dash if there is none."""
    if number is None or number["value"] is None:
        return MISSING
    return written(number["value"], number["unit"], sign=sign)


def interval(number: Mapping[str, Any] | None, *, sign: bool = False) -> str:
    """Format a number's 95% interval; empty if there is none."""
    if number is None or number["interval"] is None:
        return ""
    return " to ".join(written(end, number["unit"], sign=sign) for end in number["interval"])


def asked_protocols(results: Sequence[dict[str, Any]]) -> list[str]:
    """Return the protocols that have a headline and that any run was asked, in the order of tables."""
    found = displays(results)
    return [
        name for name, display in found.items() if display.headline and any(name in run["protocols"] for run in results)
    ]


def headline_numbers(results: Sequence[dict[str, Any]]) -> dict[tuple[str, str], Column]:
    """Map (protocol, metric) to column for the headline numbers of each protocol that was asked."""
    shown = displays(results)
    return {
        (name, column.key): column
        for name in asked_protocols(results)
        for column in shown[name].headline
        if any(overall(run_results, name, column.key) for run_results in results)
    }


def baseline(results: Sequence[dict[str, Any]], kind: str, protocol: str, column: Column) -> dict[str, Any] | None:
    """Return the baseline ``majority`` or ``chance`` of a number; None if it is not defined.

    A baseline depends only on the questions, so it is taken from the first run that was asked.
    """
    known = next((run_results for run_results in results if protocol in run_results["protocols"]), None)
    name = column.majority if kind == "majority" else column.chance
    return overall(known, protocol, name) if known and name else None


def overall(results: dict[str, Any], protocol: str, metric: str) -> dict[str, Any] | None:
    """Return one overall number of a run; None if the protocol was not asked."""
    number: dict[str, Any] | None = results["protocols"].get(protocol, {}).get("overall", {}).get(metric)
    return number


def swapped(results: dict[str, Any], protocol: str, metric: str) -> dict[str, Any] | None:
    """Return one number of the image-swap control; None if it was not asked."""
    number: dict[str, Any] | None = (results["protocols"].get(protocol, {}).get("swapped") or {}).get(metric)
    return number


def summary_table(results: Sequence[dict[str, Any]]) -> str:
    """Format the headline of several runs as plain text: a row for each run, then majority and chance.

    Args:
        results: Results of each run, as in ``results.json``.

    Returns:
        Lines of at most about 140 characters, with 95% intervals. Shares are percent, and the mean over attributes
        or sets.
    """
    shown = headline_numbers(results)
    titles = {name: display.title for name, display in displays(results).items()}
    retained = any(run_results["retention"] for run_results in results) or not shown
    swaps = (
        name
        for name in asked_protocols(results)
        if any(swapped(run_results, name, "drop_macro") for run_results in results)
    )
    control = next(swaps, None)
    header = ["accuracy, %", *(column.title for column in shown.values()), *(["Retention"] if retained else [])]
    header += [f"Swap costs ({titles[control].lower()})"] if control else []
    rows = [header]
    for run_results in results:
        row = [run_results["name"], *(_cell(overall(run_results, name, metric)) for name, metric in shown)]
        row += [_cell(run_results["retention"].get("composite"))] if retained else []
        rows.append([*row, _cell(swapped(run_results, control, "drop_macro"))] if control else row)
    for label, kind in (("majority (train)", "majority"), ("chance", "chance")):
        cells = [percent(baseline(results, kind, name, column)) for (name, _), column in shown.items()]
        rows.append([label, *cells, *[""] * (len(header) - 1 - len(cells))])
    counts = [_count(results, name, metric) for name, metric in shown]
    rows.append(["n (answers)", *counts, *[""] * (len(header) - 1 - len(counts))])
    return "\n".join([_aligned(rows), *_cautions(results, shown)])


def _cautions(results: Sequence[dict[str, Any]], shown: Mapping[tuple[str, str], Column]) -> list[str]:
    """Return a line for each sentence that belongs beside a number of the table, each once."""
    lines: dict[str, None] = {}
    for run_results in results:
        for (name, metric), column in shown.items():
            caution = (overall(run_results, name, metric) or {}).get("caution")
            if caution:
                lines[f"{column.title} {caution}"] = None
    return list(lines)


def _cell(number: dict[str, Any] | None) -> str:
    span = interval(number).replace(" to ", "..")
    return f"{percent(number)} [{span}]" if span else percent(number)


def _count(results: Sequence[dict[str, Any]], protocol: str, metric: str) -> str:
    numbers = (overall(run_results, protocol, metric) for run_results in results)
    return " / ".join(map(str, sorted({number["n"] for number in numbers if number is not None})))


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    rule = "  ".join("-" * width for width in widths)
    return "\n".join([lines[0], rule, *lines[1:-3], rule, *lines[-3:]])
