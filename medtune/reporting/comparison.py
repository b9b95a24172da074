"""Compares each run with the first one, paired by question."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from medtune.evaluation.display import Display
from medtune.evaluation.evaluation import plain
from medtune.evaluation.measures import MEASURE, difference_unit
from medtune.evaluation.paired import mcnemar
from medtune.evaluation.protocols.base import EvaluationProtocol, Pair
from medtune.evaluation.protocols.registry import REGISTRY
from medtune.evaluation.result import Metric
from medtune.evaluation.scoring import paired_difference
from medtune.reporting.displays import displays
from medtune.reporting.runs import Run

Row = dict[str, str]


def compare(base: Run, run: Run, *, resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Compute the differences ``run`` minus ``base`` on the true images, where both were asked the same questions.

    Args:
        base: The run to compare with.
        run: The run to compare.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resampling.

    Returns:
        ``{protocol: number, ..., "retention": number, "skipped": {protocol: why}}``. A protocol's number is the
        difference of the mean over attributes. Its entry also holds ``micro``, the difference over questions. For right
        and wrong answers it holds ``mcnemar`` (:class:`medtune.evaluation.paired.McNemar`, ``first`` is ``base``). It
        also holds the differences that the protocol computes itself, for example ``f1_macro`` of a classification. A
        protocol that one run was not asked is left out. A protocol with different questions in the two runs is listed
        under ``skipped``; this key is absent if nothing was skipped.
    """
    numbers: dict[str, Any] = {}
    skipped: dict[str, str] = {}
    shown = displays([base.results, run.results])
    components = [task for task, display in shown.items() if display.retention]
    parts: dict[str, list[Pair]] = {}
    for task, display in shown.items():
        pairs, why = _pairs(base, run, task, display)
        if why:
            skipped[task] = why
        if not pairs:
            continue
        if display.headline:
            numbers[task] = _differences(pairs, task, display, base, run, resamples, seed)
        if task in components:
            parts[task] = pairs
    lost = [task for task in skipped if task in components]
    if lost:  # with fewer components the composite would be a different number under the same name
        skipped["retention"] = f"its component {lost[0]!r} was asked on different questions"
    elif parts:
        retained_pairs = [pair for task in components for pair in parts.get(task, [])]
        numbers["retention"] = plain(_retention(retained_pairs, base.name, resamples, seed))
    return {**numbers, "skipped": skipped} if skipped else numbers


def compare_over_seeds(
    base: Mapping[int, Run], runs: Mapping[int, Run], *, resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Compute the differences between two models trained with several seeds, with the answers of all seeds pooled.

    Each run is paired with the run of the same seed. A bootstrap resample draws whole images with the answers of every
    seed, so an interval shows the uncertainty from the choice of images. ``by_seed`` shows how much the seeds differ.

    Args:
        base: Runs of the model to compare with, by seed.
        runs: Runs of the model to compare, by seed. Seeds that only one of the two has are left out.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resampling.

    Returns:
        ``{protocol: {**number, "by_seed": {seed: difference}}}``, the mean over attributes, or over the sets of a
        classification. A classification's number also holds an ``f1_macro`` of the same form. Protocols whose questions
        differ between the runs are left out.
    """
    shared = {
        training_seed: (base[training_seed], runs[training_seed]) for training_seed in base if training_seed in runs
    }
    numbers: dict[str, Any] = {}
    for task, shown in displays(run.results for pair in shared.values() for run in pair).items():
        if not shown.headline:
            continue
        pairs = {
            training_seed: _pairs(first, second, task, shown)[0] for training_seed, (first, second) in shared.items()
        }
        if not pairs or not all(pairs.values()):
            continue
        first, second = next(iter(shared.values()))
        name = f"{first.name}, mean over {len(pairs)} seeds"
        pooled = [pair for seed_pairs in pairs.values() for pair in seed_pairs]
        macro = _macro(_with_number(pooled, shown), _numbers(second, task, shown), shown, name, resamples, seed)
        # the difference is a mean over attributes, also if the headline shows the number over questions
        main = re.sub("_micro$", "_macro", shown.main)
        numbers[task] = {**plain(macro), "by_seed": _by_seed(shared, task, main)}
        for key, number in _of_protocol(task, pairs, second, name, resamples, seed).items():
            numbers[task][key] = {**plain(number), "by_seed": _by_seed(shared, task, key)}
    return numbers


def _pairs(base: Run, run: Run, task: str, shown: Display) -> tuple[list[Pair], str]:
    """Return the paired verdicts of two runs, and the reason if they cannot be paired.

    The list is empty if one run was not asked (then without a reason) or if the questions differ.
    """
    first, second = _true(base, task), _true(run, task)
    if not first or not second:
        return [], ""
    why = mismatch(first, second)
    if not why and task in REGISTRY:
        why = _protocol(task).mismatch(base.results.get("vocabulary", {}), run.results.get("vocabulary", {}))
    if why:
        return [], why
    pairs = [(first[query_id], second[query_id]) for query_id in second]
    every = task in REGISTRY and _protocol(task).compares_every_pair
    return pairs if every else _with_number(pairs, shown), ""


def _with_number(pairs: list[Pair], shown: Display) -> list[Pair]:
    """Return the pairs that have the number of ``display.paired`` on both sides."""
    if not shown.paired.startswith(MEASURE):
        return pairs
    return [pair for pair in pairs if all(row.get(shown.paired) for row in pair)]


def _by_seed(shared: Mapping[int, tuple[Run, Run]], task: str, name: str) -> dict[str, float]:
    values = {
        training_seed: [run.results["protocols"][task]["overall"][name]["value"] for run in pair]
        for training_seed, pair in shared.items()
    }
    return {
        str(training_seed): second - first
        for training_seed, (first, second) in values.items()
        if None not in (first, second)
    }


def _true(run: Run, task: str) -> dict[str, Row]:
    return {query_id: row for query_id, row in run.verdicts.items() if row["task"] == task and row["swapped"] == "0"}


def mismatch(first: dict[str, Row], second: dict[str, Row]) -> str:
    """Return why two sets of verdicts cannot be paired; empty if they can."""
    if first.keys() != second.keys():
        shared = len(first.keys() & second.keys())
        return f"the question sets differ: {len(first)} and {len(second)} questions, {shared} of them in both"
    changed = sum(
        any(first[query_id][key] != second[query_id][key] for key in ("gold", "images")) for query_id in first
    )
    return f"{changed} of {len(first)} questions have another right answer or image" if changed else ""


def _protocol(task: str) -> EvaluationProtocol:
    return REGISTRY[task]()


def _of_protocol(
    task: str, pairs: Mapping[int, list[Pair]], run: Run, base: str, resamples: int, seed: int
) -> dict[str, Metric]:
    """Return the differences that a packaged protocol computes itself."""
    if task not in REGISTRY:
        return {}
    return _protocol(task).compare(pairs, run.results.get("vocabulary", {}), base, resamples=resamples, seed=seed)


def _numbers(run: Run, task: str, shown: Display) -> dict[str, Any]:
    """Return the first number of a run's headline, which has the unit and the direction."""
    number: dict[str, Any] = run.results["protocols"].get(task, {}).get("overall", {}).get(shown.main, {})
    return number


def _differences(
    pairs: list[Pair], task: str, shown: Display, base: Run, run: Run, resamples: int, seed: int
) -> dict[str, Any]:
    headline_number = _numbers(run, task, shown)
    numbered = _with_number(pairs, shown)
    macro = _macro(numbered, headline_number, shown, base.name, resamples, seed)
    values, images = _gains(numbered, shown.paired), [first["images"] for first, _ in numbered]
    micro = paired_difference(values, [""] * len(numbered), images, "", resamples, seed)
    what = "share of right answers" if shown.paired == "correct" else shown.paired.removeprefix(MEASURE)
    text = f"{what} over the questions minus that of {base.name}, paired by question"
    micro = _as(replace(micro, definition=f"{text}; interval by a bootstrap over images"), headline_number, shown)
    found = {**plain(macro), "micro": plain(micro)}
    if shown.paired == "correct":
        right = ([pair[side]["correct"] == "1" for pair in pairs] for side in (0, 1))
        found["mcnemar"] = mcnemar(*right).to_dict()
    others = _of_protocol(task, {0: pairs}, run, base.name, resamples, seed)
    return {**found, **{key: plain(number) for key, number in others.items()}}


def _as(number: Metric, headline_number: Mapping[str, Any], shown: Display) -> Metric:
    """Set a difference's unit and direction to those of its number; a share of right answers has them already."""
    if shown.paired == "correct":
        return number
    unit = difference_unit(headline_number.get("unit", "fraction"))
    return replace(number, unit=unit, higher_is_better=headline_number.get("higher_is_better"))


def _gains(pairs: list[Pair], column: str) -> list[float]:
    return [float(second[column]) - float(first[column]) for first, second in pairs]


def _macro(
    pairs: list[Pair], headline_number: Mapping[str, Any], shown: Display, base: str, resamples: int, seed: int
) -> Metric:
    images = [first["images"] for first, _ in pairs]
    attributes = [first["attribute"] for first, _ in pairs]
    what = "accuracy" if shown.paired == "correct" else shown.paired.removeprefix(MEASURE)
    number = paired_difference(
        _gains(pairs, shown.paired), attributes, images, f"{what} minus that of {base}", resamples, seed
    )
    return _as(number, headline_number, shown)


def _retention(pairs: list[Pair], base: str, resamples: int, seed: int) -> Metric:
    """Return the difference in the composite: a mean over components, which are used like attributes here."""
    number = paired_difference(
        _gains(pairs, "in_format"),
        [first["task"] for first, _ in pairs],
        [first["images"] for first, _ in pairs],
        "",
        resamples,
        seed,
    )
    text = f"composite retention minus that of {base}, paired by query; interval by a bootstrap over images"
    return replace(number, definition=text)
