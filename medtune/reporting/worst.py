"""The questions that most runs get wrong, with their images. Shown only if samples are requested."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from medtune.data.randomness import sample_rng
from medtune.reporting.displays import Displays, displays
from medtune.reporting.gallery import Card, OpenImage, asked_questions, make_card
from medtune.reporting.runs import Run

WORST = 20
"""Number of cases that a report shows."""


@dataclass(frozen=True)
class _Case:
    sample_id: str
    asked: int
    wrong: int
    base_right: bool


def worst_task(runs: Sequence[Run]) -> str | None:
    """Return the protocol that ranks the cases: the first in the order of tables with right and wrong answers."""
    ranked = _ranked(displays(run.results for run in runs))
    return next((task for task in ranked if any(_judged(run, task) for run in runs)), None)


def worst_cards(runs: Sequence[Run], count: int, open_image: OpenImage | None, seed: int = 0) -> list[Card]:
    """Choose the worst cases and collect the answers to them.

    Up to half of the cases are losses: the first run is right and as many other runs as possible are wrong. The rest
    are the questions that the most runs get wrong. The seed alone decides between ties.

    Args:
        runs: Runs whose predictions were read; the first is the base.
        count: Maximum number of cases; questions that no run gets wrong are never included.
        open_image: Opens an image by its path in the question file; None shows no images.
        seed: Seed of the order within ties.
    """
    task = worst_task(runs)
    shown = displays(run.results for run in runs)
    asked = asked_questions(runs, shown)
    cases = [case for case in _cases(runs, task, seed) if case.sample_id in asked] if task else []
    losses = sorted((case for case in cases if case.base_right), key=lambda case: -case.wrong)[: count // 2]
    chosen = set(losses)
    rest = sorted((case for case in cases if case not in chosen), key=lambda case: (-case.wrong, case.asked))
    picked = [*losses, *rest[: count - len(losses)]]
    title = shown[task].title.lower() if task else ""
    return [
        replace(make_card(runs, asked[case.sample_id], open_image, _ranked(shown)), reason=_reason(case, title))
        for case in picked
    ]


def _ranked(shown: Displays) -> Displays:
    return {name: display for name, display in shown.items() if display.examples is not None and display.examples.ranks}


def _cases(runs: Sequence[Run], task: str, seed: int) -> list[_Case]:
    """Return every question that at least one run gets wrong, in a random order that depends only on the seed."""
    judged = [_judged(run, task) for run in runs]
    ids = sorted({sample_id for rows in judged for sample_id in rows})
    sample_rng(seed, 0, 0, "report_worst").shuffle(ids)
    cases = []
    for sample_id in ids:
        marks = [rows[sample_id] for rows in judged if sample_id in rows]
        cases.append(_Case(sample_id, len(marks), marks.count(False), judged[0].get(sample_id, False)))
    return [case for case in cases if case.wrong]


def _judged(run: Run, task: str) -> dict[str, bool]:
    rows = (row for row in run.verdicts.values() if row["task"] == task and row["swapped"] == "0")
    return {row["sample_id"]: row["correct"] == "1" for row in rows}


def _reason(case: _Case, title: str) -> str:
    if case.base_right:
        return f"{title}: the first model right, {case.wrong} of {case.asked - 1} others wrong"
    return f"{title}: {case.wrong} of {case.asked} models wrong"
