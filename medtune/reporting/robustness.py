"""The robustness card of each run: how often answers change that should stay, and stay that should change."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from medtune.evaluation.robustness import PROBES
from medtune.reporting.displays import displays
from medtune.reporting.plots import colour
from medtune.reporting.runs import Run
from medtune.reporting.summary import percent
from medtune.reporting.views import Cell, Row, Section, Table, cell

TITLES = {
    "swapped": "Other image: answer changes",
    "no_image": "No image: answer changes",
    "options": "Options in another order: answer changes",
    "paraphrase": "Paraphrased question: answer changes",
}
HELP = (
    "Each question is asked again on another question's image, without an image, with its options in another order, "
    "and in other words. With another image that has another right answer, the answer should change; with other words "
    "or another order of the options it should stay. Without an image there is nothing to see: a model that keeps its "
    "answer and its accuracy there does not use the image. The small line is the accuracy under that change, and what "
    "it costs."
)


def robustness_sections(runs: Sequence[Run]) -> list[Section]:
    """Return the card as one section: a row for each run and protocol; none if no run was asked for it."""
    asked = [(place, run, run.results["robustness"]) for place, run in enumerate(runs) if run.results.get("robustness")]
    probes = [name for name in PROBES if any(name in one for _, _, card in asked for one in card.values())]
    if not probes:
        return []
    shown = displays(run.results for _, run, _ in asked)
    rows = [
        Row(f"{run.name}: {shown[task].title}", [_cell(card[task].get(probe)) for probe in probes], colour(place))
        for task in shown
        for place, run, card in asked
        if task in card
    ]
    return [Section("Robustness card", HELP, Table("Robustness", [TITLES[name] for name in probes], rows))]


def _cell(numbers: dict[str, Any] | None) -> Cell:
    if numbers is None:
        return Cell("")
    flips = cell(numbers["flip_rate"])
    cost = percent(numbers["drop"], sign=True)
    return replace(flips, note=f"accuracy {percent(numbers['accuracy'])}, costs {cost}")
