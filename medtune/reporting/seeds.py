"""Several seeds of each variant, and a number against a swept value: the section of a sweep's report."""

from collections.abc import Mapping
from typing import Any

from medtune.data.labels import PROTOCOL
from medtune.reporting import plots
from medtune.reporting.summary import MISSING, PROTOCOL_TITLES
from medtune.reporting.views import Cell, Row, Section, Table, cell

Spreads = Mapping[str, Mapping[str, dict[str, Any]]]
"""Variant title -> number name -> ``{mean, deviation, seeds, values}``, as ``seeds.json`` holds them."""


def seeds_section(spreads: Spreads, axis: str = "", places: Mapping[str, float] | None = None) -> Section | None:
    """Describe a sweep over seeds, over a value, or over both.

    Args:
        spreads: Every variant's numbers.
        axis: Name of the swept value; empty draws no plot.
        places: Variant title to its value; a variant without one becomes a level line.

    Returns:
        The section, None for one seed of variants that differ in no value.
    """
    most = max((one["seeds"] for numbers in spreads.values() for one in numbers.values()), default=0)
    picture = plots.sweep_chart(spreads, axis, places or {}, _titles(spreads)) if axis else None
    if most < 2 and picture is None:
        return None
    help = "Accuracy is the mean over attributes."
    if most > 1:
        help += (
            f" Mean and standard deviation over up to {most} training seeds, which is not the interval over questions; "
            "numbers elsewhere on this page are of the first seed unless they say otherwise."
        )
    title = f"By {axis}" if axis else "Over seeds"
    alt = f"Accuracies and retention against {axis}, with deviations over seeds"
    return Section(title, help, _table(spreads) if most > 1 else None, picture or "", alt)


def sets_section(spreads: Spreads) -> Section | None:
    """Describe accuracy and macro-F1 of each set of a classification over seeds (VITask, Table 2).

    Args:
        spreads: As for :func:`seeds_section`; a set's numbers are named ``classification/<set>/<number>``.

    Returns:
        The section, None for one seed or without sets.
    """
    sets = sorted({name.split("/")[1] for numbers in spreads.values() for name in numbers if _of_set(name)})
    columns = {
        f"{PROTOCOL}/{name}/{metric}": f"{name}: {title}"
        for name in sets
        for metric, title in (("accuracy", "accuracy"), ("f1_macro", "macro-F1"))
    }
    shown = [one for numbers in spreads.values() for name, one in numbers.items() if name in columns]
    if max((one["seeds"] for one in shown), default=0) < 2:
        return None
    rows = [Row(variant, [_cell(numbers, name) for name in columns]) for variant, numbers in spreads.items()]
    help = "Mean and standard deviation over training seeds; accuracy of a multi-label set is the exact match."
    return Section("Over seeds, by set", help, Table("Sets", list(columns.values()), rows))


def differences_section(differences: Mapping[str, Mapping[str, Any]], base: str) -> Section | None:
    """Describe every row's paired differences from one of them, the answers of all seeds pooled.

    Args:
        differences: Row title to its numbers by protocol (:func:`medtune.reporting.comparison.compare_over_seeds`).
        base: Title of the row that is subtracted.

    Returns:
        The section, None where there are no differences.
    """
    asked = {name: title for name, title in PROTOCOL_TITLES.items() if any(name in one for one in differences.values())}
    columns = [(name, "", title) for name, title in asked.items()]
    if PROTOCOL in asked:
        columns.insert(1 + list(asked).index(PROTOCOL), (PROTOCOL, "f1_macro", f"{asked[PROTOCOL]}, macro-F1"))
    if not columns:
        return None
    rows = []
    for variant, numbers in differences.items():
        chosen = [numbers.get(name, {}).get(part) if part else numbers.get(name) for name, part, _ in columns]
        rows.append(Row(variant, [cell(one, against=0.0, sign=True) for one in chosen]))
    help = (
        f"Minus {base}, paired by question and seed. The interval is by a bootstrap over images, each with the answers "
        "of every seed: it is about the choice of images, not of seeds."
    )
    return Section("Differences over seeds", help, Table("Differences", [title for *_, title in columns], rows))


def _of_set(name: str) -> bool:
    return name.startswith(f"{PROTOCOL}/") and name.count("/") > 1


def _titles(spreads: Spreads) -> dict[str, str]:
    """Names of the numbers that are shown, in the order of the page's tables, with their titles."""
    shown = {f"{name}/accuracy_macro": title for name, title in PROTOCOL_TITLES.items()}
    shown["classification/f1_macro"] = "Classification, macro-F1"
    shown["response_likelihood/auc_macro"] = "Response ranking, AUC"
    shown["response_likelihood/overlap_macro"] = "Response ranking, overlap"
    shown["retention"] = "Instruction retention"
    return {name: title for name, title in shown.items() if any(name in numbers for numbers in spreads.values())}


def _table(spreads: Spreads) -> Table:
    titles = _titles(spreads)
    rows = [Row(variant, [_cell(numbers, name) for name in titles]) for variant, numbers in spreads.items()]
    return Table("Over seeds", list(titles.values()), rows)


def _cell(numbers: Mapping[str, dict[str, Any]], name: str) -> Cell:
    one = numbers.get(name)
    if one is None:
        return Cell(MISSING)
    span = "" if one["deviation"] is None else f"± {100 * one['deviation']:.1f}"
    balanced = numbers.get(name.replace("/accuracy_macro", "/balanced_accuracy_macro"), one)
    note = "" if balanced is one else f"balanced {100 * balanced['mean']:.1f}"
    runs = f"{one['seeds']} seed{'' if one['seeds'] == 1 else 's'}"
    values = ", ".join(f"{100 * value:.1f}" for value in one["values"])
    return Cell(f"{100 * one['mean']:.1f}", span, runs, note, title=values)
