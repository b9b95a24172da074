"""How numbers are written, and the plain-text table for a terminal."""

from collections.abc import Sequence
from typing import Any

PROTOCOL_TITLES = {
    "open": "Open question",
    "multiple_choice": "Multiple choice",
    "letter_likelihood": "Letter likelihood",
    "yes_no": "Yes / no",
}
"""Protocols with a right answer, in the order of tables."""
RETENTION_TITLES = {
    "multiple_choice": "letter format",
    "open": "open question answered",
    "yes_no": "yes/no format",
    "description": "natural description",
    "composite": "composite",
}
MISSING = "–"
MINUS = "−"


def percent(number: dict[str, Any] | None, *, sign: bool = False) -> str:
    """Write a number's value in percent with one decimal, a dash where there is none."""
    if number is None or number["value"] is None:
        return MISSING
    text = f"{100 * number['value']:+.1f}" if sign else f"{100 * number['value']:.1f}"
    return text.replace("-", MINUS)


def interval(number: dict[str, Any] | None, *, sign: bool = False) -> str:
    """Write a number's 95% interval in percent, empty where there is none."""
    if number is None or number["interval"] is None:
        return ""
    low, high = (100 * one for one in number["interval"])
    text = f"{low:+.1f} to {high:+.1f}" if sign else f"{low:.1f} to {high:.1f}"
    return text.replace("-", MINUS)


def asked_protocols(results: Sequence[dict[str, Any]]) -> list[str]:
    """Protocols with a right answer that any of the runs was asked."""
    return [name for name in PROTOCOL_TITLES if any(name in one["protocols"] for one in results)]


def overall(results: dict[str, Any], protocol: str, metric: str) -> dict[str, Any] | None:
    """Return one overall number of a run, None where the protocol was not asked."""
    number: dict[str, Any] | None = results["protocols"].get(protocol, {}).get("overall", {}).get(metric)
    return number


def swapped(results: dict[str, Any], protocol: str, metric: str) -> dict[str, Any] | None:
    """Return one number of the image-swap control, None where it was not asked."""
    number: dict[str, Any] | None = (results["protocols"].get(protocol, {}).get("swapped") or {}).get(metric)
    return number


def summary_table(results: Sequence[dict[str, Any]]) -> str:
    """Write the headline of several runs as plain text: a row for each run, then majority and chance.

    Args:
        results: Results of each run, as in ``results.json``.

    Returns:
        Lines of at most about 140 characters. Values are percent with 95% intervals; accuracy is the
        mean over attributes.
    """
    protocols = asked_protocols(results)
    control = next((name for name in protocols if any(swapped(one, name, "drop_macro") for one in results)), None)
    header = ["accuracy, %", *(PROTOCOL_TITLES[name] for name in protocols), "Retention"]
    header += [f"Swap costs ({PROTOCOL_TITLES[control].lower()})"] if control else []
    rows = [header]
    for one in results:
        row = [one["name"], *(_cell(overall(one, name, "accuracy_macro")) for name in protocols)]
        row.append(_cell(one["retention"].get("composite")))
        rows.append([*row, _cell(swapped(one, control, "drop_macro"))] if control else row)
    for label, metric in (("majority (train)", "majority_macro"), ("chance", "chance_macro")):
        cells = [_first(results, name, metric) for name in protocols]
        rows.append([label, *cells, *[""] * (len(header) - 1 - len(cells))])
    counts = [_count(results, name) for name in protocols]
    rows.append(["n (answers)", *counts, *[""] * (len(header) - 1 - len(counts))])
    return _aligned(rows)


def _cell(number: dict[str, Any] | None) -> str:
    span = interval(number).replace(" to ", "..")
    return f"{percent(number)} [{span}]" if span else percent(number)


def _first(results: Sequence[dict[str, Any]], protocol: str, metric: str) -> str:
    """A baseline depends on the questions alone, so that the first run that was asked them has it."""
    return next((percent(overall(one, protocol, metric)) for one in results if protocol in one["protocols"]), MISSING)


def _count(results: Sequence[dict[str, Any]], protocol: str) -> str:
    counts = sorted(
        {
            one["protocols"][protocol]["overall"]["accuracy_macro"]["n"]
            for one in results
            if protocol in one["protocols"]
        }
    )
    return " / ".join(map(str, counts))


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    rule = "  ".join("-" * width for width in widths)
    return "\n".join([lines[0], rule, *lines[1:-3], rule, *lines[-3:]])
