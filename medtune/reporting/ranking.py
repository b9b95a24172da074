"""Response ranking on the page (VITask, Fig. 4): densities and numbers of each run, then of each set."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from medtune.evaluation.protocols.response_likelihood import ResponseLikelihood
from medtune.reporting import plots
from medtune.reporting.runs import Run
from medtune.reporting.summary import MINUS, MISSING
from medtune.reporting.views import Cell, Row, Section, Table, cell

NAME = ResponseLikelihood.name
COLUMNS = {
    "auc": "AUC, own image against another",
    "own_above_other": "Own image above another",
    "overlap": "Overlap of the densities",
    "margin": "Margin, nats per token",
    "probability_own": "Probability, own image",
    "probability_other": "Probability, another image",
}
HELP = (
    "How likely is the right response when the question's own image is shown, and when an image of the same set is "
    "shown whose right response is another? A model that ranks responses by what it sees puts the first above the "
    "second; the densities of one that does not look lie on top of each other. An AUC of 50 is no ranking."
)


def ranking_sections(runs: Sequence[Run]) -> list[Section]:
    """Return the two sections, of runs and of sets; none where no run was asked ``response_likelihood``."""
    held = {run.name: (place, run.results["protocols"][NAME]) for place, run in enumerate(runs) if _asked(run)}
    if not held:
        return []
    rows = [
        Row(name, [_cell(numbers["overall"].get(f"{key}_macro"), key) for key in COLUMNS], plots.colour(place))
        for name, (place, numbers) in held.items()
    ]
    densities = {name: _mean_density(numbers["densities"]) for name, (_, numbers) in held.items()}
    picture = plots.density_chart(densities, {name: place for name, (place, _) in held.items()})
    table = Table("Response ranking", list(COLUMNS.values()), rows)
    alt = "Densities of the right response's probability under own and under other images, one panel a model"
    found = [Section("Response ranking", f"{HELP} Means over sets.", table, picture, alt)]
    return [*found, _by_set({name: numbers["attributes"] for name, (_, numbers) in held.items()})]


def _asked(run: Run) -> bool:
    """An empty question file has a protocol without pairs."""
    return bool(run.results["protocols"].get(NAME, {}).get("attributes"))


def _mean_density(sets: dict[str, Any]) -> tuple[list[float], list[float]]:
    own, other = (np.mean([one[side] for one in sets.values()], axis=0).tolist() for side in ("own", "other"))
    return own, other


def _by_set(numbers: dict[str, dict[str, Any]]) -> Section:
    rows = []
    for name in sorted({name for sets in numbers.values() for name in sets}):
        cells = []
        for sets in numbers.values():
            one = sets.get(name)
            note = "" if one is None else f"overlap {100 * one['overlap']['value']:.1f}"
            cells.append(Cell(MISSING) if one is None else replace(_cell(one["auc"], "auc"), note=note))
        rows.append(Row(name, cells))
    help = "AUC of the likelihoods under own images against those under other images, and the densities' overlap."
    return Section("Response ranking for each set", help, Table("Sets", list(numbers), rows), first="Set")


def _cell(number: dict[str, Any] | None, key: str) -> Cell:
    """As everywhere in percent, but for the margin, which is no share."""
    if key != "margin" or number is None or number["value"] is None:
        return cell(number, against=0.5 if key == "auc" else None)
    value, *ends = (f"{one:+.2f}".replace("-", MINUS) for one in [number["value"], *(number["interval"] or [])])
    return Cell(value, " to ".join(ends), f"n={number['n']}", title=number["definition"])
