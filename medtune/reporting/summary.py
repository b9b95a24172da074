"""How numbers are written, and the plain-text table for a terminal."""

from collections.abc import Sequence
from typing import Any

PROTOCOL_TITLES = {
    "open": "Open question",
    "multiple_choice": "Multiple choice",
    "letter_likelihood": "Letter likelihood",
    "yes_no": "Yes / no",
    "classification": "Classification",
}
"""Protocols with a right answer, in the order of tables."""
_HEADLINE = {"accuracy_macro": "", "f1_macro": ", macro-F1"}
"""Numbers of the headline, with what is added to the protocol's title; a protocol without F1 has the first alone."""
_BASELINES = {
    ("majority", "accuracy_macro"): "majority_macro",
    ("majority", "f1_macro"): "majority_f1_macro",
    ("chance", "accuracy_macro"): "chance_macro",
}
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


def headline_numbers(results: Sequence[dict[str, Any]]) -> dict[tuple[str, str], str]:
    """Return (protocol, metric) to title of the numbers that stand for each protocol that was asked."""
    return {
        (name, metric): PROTOCOL_TITLES[name] + added
        for name in asked_protocols(results)
        for metric, added in _HEADLINE.items()
        if any(overall(one, name, metric) for one in results)
    }


def baseline(results: Sequence[dict[str, Any]], kind: str, protocol: str, metric: str) -> dict[str, Any] | None:
    """Return what ``majority`` or ``chance`` scores in a number of the headline, None where that is not defined.

    A baseline depends on the questions alone, so that the first run that was asked them has it.
    """
    known = next((one for one in results if protocol in one["protocols"]), None)
    name = _BASELINES.get((kind, metric))
    return overall(known, protocol, name) if known and name else None


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
        mean over attributes, or over the sets of a classification.
    """
    shown = headline_numbers(results)
    protocols = asked_protocols(results)
    retained = any(one["retention"] for one in results) or not shown
    control = next((name for name in protocols if any(swapped(one, name, "drop_macro") for one in results)), None)
    header = ["accuracy, %", *shown.values(), *(["Retention"] if retained else [])]
    header += [f"Swap costs ({PROTOCOL_TITLES[control].lower()})"] if control else []
    rows = [header]
    for one in results:
        row = [one["name"], *(_cell(overall(one, name, metric)) for name, metric in shown)]
        row += [_cell(one["retention"].get("composite"))] if retained else []
        rows.append([*row, _cell(swapped(one, control, "drop_macro"))] if control else row)
    for label, kind in (("majority (train)", "majority"), ("chance", "chance")):
        cells = [percent(baseline(results, kind, name, metric)) for name, metric in shown]
        rows.append([label, *cells, *[""] * (len(header) - 1 - len(cells))])
    counts = [_count(results, name) for name, _ in shown]
    rows.append(["n (answers)", *counts, *[""] * (len(header) - 1 - len(counts))])
    return _aligned(rows)


def _cell(number: dict[str, Any] | None) -> str:
    span = interval(number).replace(" to ", "..")
    return f"{percent(number)} [{span}]" if span else percent(number)


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
