"""Formats numbers, and makes the plain-text table for a terminal."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from medtune.evaluation.display import Column
from medtune.reporting.displays import displays

MISSING = "–"
MINUS = "−"
WIDTH = 140
"""Characters of a line of the table."""
_HEADING, _SENTENCE = 16, 118


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

    Columns without any value are named below, and baselines without any are left out. Headings are wrapped, and a table
    that would be wider than ``WIDTH`` goes on in a second one below.

    Args:
        results: Results of each run, as in ``results.json``.

    Returns:
        Lines of at most ``WIDTH`` characters, with 95% intervals. Shares are percent, and the mean over attributes or
        sets.
    """
    headline = headline_numbers(results)
    shown = {key: column for key, column in headline.items() if _values(results, *key)}
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
    rows = []
    for run_results in results:
        row = [run_results["name"], *(_cell(overall(run_results, name, metric)) for name, metric in shown)]
        row += [_cell(run_results["retention"].get("composite"))] if retained else []
        rows.append([*row, _cell(swapped(run_results, control, "drop_macro"))] if control else row)
    below = []
    for label, kind in (("majority (train)", "majority"), ("chance", "chance")):
        cells = [percent(baseline(results, kind, name, column)) for (name, _), column in shown.items()]
        if any(cell != MISSING for cell in cells) or not shown:
            below.append([label, *cells, *[""] * (len(header) - 1 - len(cells))])
    counts = [_count(results, name, metric) for name, metric in shown]
    below.append(["n (answers)", *counts, *[""] * (len(header) - 1 - len(counts))])
    cautions = _cautions(results, shown)
    empty = [column.title for key, column in headline.items() if key not in shown]
    if empty:  # nothing of it was asked, or no answer could be read
        cautions.append(f"Without a value: {'; '.join(empty)}.")
    return "\n".join([_aligned(header, rows, below), *(textwrap.fill(line, _SENTENCE) for line in cautions)])


def ranking_note(results: Sequence[dict[str, Any]]) -> str | None:
    """Say that the questions are too few to rank the models; None if they are not.

    They are too few if in every headline column the 95% interval of the best model overlaps that of another one.
    """
    if len(results) < 2:
        return None
    counts = set()
    for name, metric in headline_numbers(results):
        numbers = [number for number in _values(results, name, metric) if number["interval"] is not None]
        counts |= {number["n"] for number in numbers}
        if len(numbers) < 2 or numbers[0]["higher_is_better"] is None:
            continue
        up = 1 if numbers[0]["higher_is_better"] else -1
        best, *others = sorted(numbers, key=lambda number: -up * number["value"])
        worst_of_best = min(up * end for end in best["interval"])
        if all(max(up * end for end in other["interval"]) < worst_of_best for other in others):
            return None
    asked = f" (n = {' / '.join(map(str, sorted(counts)))})" if counts else ""
    return f"In no column is the best model apart from the next one: this set{asked} is too small to rank the methods."


def _values(results: Sequence[dict[str, Any]], name: str, metric: str) -> list[dict[str, Any]]:
    """Return a number of all runs that have a value of it."""
    numbers = (overall(run_results, name, metric) for run_results in results)
    return [number for number in numbers if number is not None and number["value"] is not None]


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
    return " / ".join(map(str, sorted({number["n"] for number in _values(results, protocol, metric)})))


def _aligned(header: list[str], rows: list[list[str]], below: list[list[str]]) -> str:
    """Lay out rows, and below a rule the baselines; columns that do not fit go on in a table below."""
    widths = [max(len(row[column]) for row in [*rows, *below]) for column in range(len(header))]
    # A heading may be as wide as its cells or its longest word, and short cells leave some room for it.
    widths = [
        max(width, min(len(title), _HEADING), *map(len, title.split()))
        for width, title in zip(widths, header, strict=True)
    ]
    parts: list[list[int]] = [[0]]
    for column in range(1, len(header)):
        if len(parts[-1]) > 1 and sum(widths[one] + 2 for one in [*parts[-1], column]) - 2 > WIDTH:
            parts.append([0])
        parts[-1].append(column)
    return "\n\n".join(_part(header, rows, below, widths, columns) for columns in parts)


def _part(
    header: list[str], rows: list[list[str]], below: list[list[str]], widths: list[int], columns: list[int]
) -> str:
    def line(cells: Sequence[str]) -> str:
        return "  ".join(cell.ljust(widths[column]) for column, cell in zip(columns, cells, strict=True)).rstrip()

    headings = [textwrap.wrap(header[column], widths[column], break_long_words=False) for column in columns]
    rule = "  ".join("-" * widths[column] for column in columns)
    height = max(map(len, headings))
    tops = [line([heading[at] if at < len(heading) else "" for heading in headings]) for at in range(height)]
    plain, last = ([line([row[column] for column in columns]) for row in group] for group in (rows, below))
    return "\n".join([*tops, rule, *plain, rule, *last])
