"""Each run against the first one, paired by question."""

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
    """Differences ``run`` minus ``base`` on the true images, where both were asked the same questions.

    Args:
        base: The run to compare with.
        run: The run to compare.
        resamples: Bootstrap draws.
        seed: Seed of the draws.

    Returns:
        ``{protocol: number, ..., "retention": number, "skipped": {protocol: why}}``. A protocol's number is the
        difference of the mean over attributes; beside it stands ``micro``, the difference over questions, and of right
        and wrong answers ``mcnemar`` (:class:`medtune.evaluation.paired.McNemar`, ``first`` being ``base``), and what
        the protocol compares itself, for example ``f1_macro`` of a classification. A protocol that one run was not
        asked is left out; one that they were asked on different questions stands under ``skipped``, a key that is
        absent where nothing was skipped.
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
    if lost:  # a composite of fewer components would be another number under the same name
        skipped["retention"] = f"its component {lost[0]!r} was asked on different questions"
    elif parts:
        held = [pair for task in components for pair in parts.get(task, [])]
        numbers["retention"] = plain(_retention(held, base.name, resamples, seed))
    return {**numbers, "skipped": skipped} if skipped else numbers


def compare_over_seeds(
    base: Mapping[int, Run], runs: Mapping[int, Run], *, resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Differences of a model tuned with several seeds minus another one, the answers of all seeds pooled.

    A seed is paired with the same seed. One draw of the bootstrap takes whole images with the answers of every seed, so
    an interval is about the choice of images; how far seeds differ stands in ``by_seed``.

    Args:
        base: The model to compare with, by seed.
        runs: The model to compare, by seed; seeds that only one of them has are left out.
        resamples: Bootstrap draws.
        seed: Seed of the draws.

    Returns:
        ``{protocol: {**number, "by_seed": {seed: difference}}}``, the mean over attributes, or over the sets of a
        classification, whose number holds such an ``f1_macro`` too. Protocols that were not asked alike are left out.
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
        pooled = [pair for held in pairs.values() for pair in held]
        macro = _macro(pooled, _numbers(second, task, shown), shown, name, resamples, seed)
        numbers[task] = {**plain(macro), "by_seed": _by_seed(shared, task, shown.main)}
        for key, number in _of_protocol(task, pairs, second, name, resamples, seed).items():
            numbers[task][key] = {**plain(number), "by_seed": _by_seed(shared, task, key)}
    return numbers


def _pairs(base: Run, run: Run, task: str, shown: Display) -> tuple[list[Pair], str]:
    """The answers of two runs to the same questions; none where one was not asked, or not alike, and then why."""
    first, second = _true(base, task), _true(run, task)
    if not first or not second:
        return [], ""
    why = _mismatch(first, second)
    if not why and task in REGISTRY:
        why = _protocol(task).mismatch(base.results.get("vocabulary", {}), run.results.get("vocabulary", {}))
    if why:
        return [], why
    pairs = [(first[query_id], second[query_id]) for query_id in second]
    if shown.paired.startswith(MEASURE):  # an answer without the number on either side makes no pair
        pairs = [pair for pair in pairs if all(row.get(shown.paired) for row in pair)]
    return pairs, ""


def _by_seed(shared: Mapping[int, tuple[Run, Run]], task: str, name: str) -> dict[str, float]:
    values = {
        training_seed: [run.results["protocols"][task]["overall"][name]["value"] for run in pair]
        for training_seed, pair in shared.items()
    }
    return {str(training_seed): second - first for training_seed, (first, second) in values.items()}


def _true(run: Run, task: str) -> dict[str, Row]:
    return {query_id: row for query_id, row in run.verdicts.items() if row["task"] == task and row["swapped"] == "0"}


def _mismatch(first: dict[str, Row], second: dict[str, Row]) -> str:
    """Why two sets of verdicts cannot be paired, empty where they can."""
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
    """What a packaged protocol compares beside the number of each answer."""
    if task not in REGISTRY:
        return {}
    return _protocol(task).compare(pairs, run.results.get("vocabulary", {}), base, resamples=resamples, seed=seed)


def _numbers(run: Run, task: str, shown: Display) -> dict[str, Any]:
    """The first number of a run's headline, which says unit and direction."""
    number: dict[str, Any] = run.results["protocols"].get(task, {}).get("overall", {}).get(shown.main, {})
    return number


def _differences(
    pairs: list[Pair], task: str, shown: Display, base: Run, run: Run, resamples: int, seed: int
) -> dict[str, Any]:
    held = _numbers(run, task, shown)
    macro = _macro(pairs, held, shown, base.name, resamples, seed)
    values, images = _gains(pairs, shown.paired), [first["images"] for first, _ in pairs]
    micro = paired_difference(values, [""] * len(pairs), images, "", resamples, seed)
    what = "share of right answers" if shown.paired == "correct" else shown.paired.removeprefix(MEASURE)
    text = f"{what} over the questions minus that of {base.name}, paired by question"
    micro = _as(replace(micro, definition=f"{text}; interval by a bootstrap over images"), held, shown)
    found = {**plain(macro), "micro": plain(micro)}
    if shown.paired == "correct":
        right = ([pair[side]["correct"] == "1" for pair in pairs] for side in (0, 1))
        found["mcnemar"] = mcnemar(*right).to_dict()
    others = _of_protocol(task, {0: pairs}, run, base.name, resamples, seed)
    return {**found, **{key: plain(number) for key, number in others.items()}}


def _as(number: Metric, held: Mapping[str, Any], shown: Display) -> Metric:
    """A difference with unit and direction of the number that it is of; one of right answers has them already."""
    if shown.paired == "correct":
        return number
    unit = difference_unit(held.get("unit", "fraction"))
    return replace(number, unit=unit, higher_is_better=held.get("higher_is_better"))


def _gains(pairs: list[Pair], column: str) -> list[float]:
    return [float(second[column]) - float(first[column]) for first, second in pairs]


def _macro(pairs: list[Pair], held: Mapping[str, Any], shown: Display, base: str, resamples: int, seed: int) -> Metric:
    images = [first["images"] for first, _ in pairs]
    attributes = [first["attribute"] for first, _ in pairs]
    what = "accuracy" if shown.paired == "correct" else shown.paired.removeprefix(MEASURE)
    number = paired_difference(
        _gains(pairs, shown.paired), attributes, images, f"{what} minus that of {base}", resamples, seed
    )
    return _as(number, held, shown)


def _retention(pairs: list[Pair], base: str, resamples: int, seed: int) -> Metric:
    """The composite is a mean over components, which take the attributes' place."""
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
