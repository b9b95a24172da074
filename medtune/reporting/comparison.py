"""Each run against the first one, paired by question."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from medtune.data.labels import PROTOCOL
from medtune.evaluation.evaluation import plain
from medtune.evaluation.labels import read_labels
from medtune.evaluation.paired import mcnemar
from medtune.evaluation.resampled import LabelTable, f1_difference
from medtune.evaluation.result import Number
from medtune.evaluation.retention import COMPONENTS
from medtune.evaluation.scoring import paired_difference
from medtune.reporting.runs import Run
from medtune.reporting.summary import PROTOCOL_TITLES

Row = dict[str, str]
Pair = tuple[Row, Row]


def compare(base: Run, run: Run, *, draws: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Differences ``run`` minus ``base`` on the true images, where both were asked the same questions.

    Args:
        base: The run to compare with.
        run: The run to compare.
        draws: Bootstrap draws.
        seed: Seed of the draws.

    Returns:
        ``{protocol: number, ..., "retention": number, "skipped": {protocol: why}}``. A protocol's number is the
        difference of the mean over attributes; beside it stand ``micro``, the difference over questions, and
        ``mcnemar`` (:class:`medtune.evaluation.paired.McNemar`, ``first`` being ``base``), and ``f1_macro`` for a
        classification. A protocol that one run
        was not asked is left out; one that they were asked on different questions stands under ``skipped``, a key
        that is absent where nothing was skipped.
    """
    numbers: dict[str, Any] = {}
    skipped: dict[str, str] = {}
    parts: list[Pair] = []
    for task in dict.fromkeys([*PROTOCOL_TITLES, *COMPONENTS]):
        pairs, why = _pairs(base, run, task)
        if why:
            skipped[task] = why
        if not pairs:
            continue
        if task in PROTOCOL_TITLES:
            numbers[task] = _accuracy(pairs, base.name, draws, seed)
        if task == PROTOCOL:
            sets = run.results["vocabulary"]["sets"]
            by_set = {(name, 0): rows for name, rows in _by_set(pairs, sets).items()}
            numbers[task]["f1_macro"] = plain(_f1(by_set, sets, base.name, draws, seed))
        parts += pairs if task in COMPONENTS else []
    lost = [task for task in skipped if task in COMPONENTS]
    if lost:  # a composite of fewer components would be another number under the same name
        skipped["retention"] = f"its component {lost[0]!r} was asked on different questions"
    elif parts:
        numbers["retention"] = plain(_retention(parts, base.name, draws, seed))
    return {**numbers, "skipped": skipped} if skipped else numbers


def compare_over_seeds(
    base: Mapping[int, Run], runs: Mapping[int, Run], *, draws: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Differences of a model tuned with several seeds minus another one, the answers of all seeds pooled.

    A seed is paired with the same seed. One draw of the bootstrap takes whole images with the answers of every seed, so
    an interval is about the choice of images; how far seeds differ stands in ``by_seed``.

    Args:
        base: The model to compare with, by seed.
        runs: The model to compare, by seed; seeds that only one of them has are left out.
        draws: Bootstrap draws.
        seed: Seed of the draws.

    Returns:
        ``{protocol: {**number, "by_seed": {seed: difference}}}``, the mean over attributes, or over the sets of a
        classification, whose number holds such an ``f1_macro`` too. Protocols that were not asked alike are left out.
    """
    shared = {one: (base[one], runs[one]) for one in base if one in runs}
    numbers: dict[str, Any] = {}
    for task in PROTOCOL_TITLES:
        pairs = {one: _pairs(first, second, task)[0] for one, (first, second) in shared.items()}
        if not pairs or not all(pairs.values()):
            continue
        first, second = next(iter(shared.values()))
        name = f"{first.name}, mean over {len(pairs)} seeds"
        macro = _macro([pair for held in pairs.values() for pair in held], name, draws, seed)
        numbers[task] = {**plain(macro), "by_seed": _by_seed(shared, task, "accuracy_macro")}
        if task == PROTOCOL:
            sets = second.results["vocabulary"]["sets"]
            apart = {(of, one): rows for one, held in pairs.items() for of, rows in _by_set(held, sets).items()}
            f1 = plain(_f1(apart, sets, name, draws, seed))
            numbers[task]["f1_macro"] = {**f1, "by_seed": _by_seed(shared, task, "f1_macro")}
    return numbers


def _pairs(base: Run, run: Run, task: str) -> tuple[list[Pair], str]:
    """The answers of two runs to the same questions; none where one was not asked, or not alike, and then why."""
    first, second = _true(base, task), _true(run, task)
    if not first or not second:
        return [], ""
    why = _mismatch(first, second)
    if not why and task == PROTOCOL and not _same_sets(base, run):
        why = "the sets have different classes"
    return ([], why) if why else ([(first[one], second[one]) for one in second], "")


def _by_seed(shared: Mapping[int, tuple[Run, Run]], task: str, name: str) -> dict[str, float]:
    values = {
        one: [run.results["protocols"][task]["overall"][name]["value"] for run in two] for one, two in shared.items()
    }
    return {str(one): second - first for one, (first, second) in values.items()}


def _true(run: Run, task: str) -> dict[str, Row]:
    return {one: row for one, row in run.verdicts.items() if row["task"] == task and row["swapped"] == "0"}


def _mismatch(first: dict[str, Row], second: dict[str, Row]) -> str:
    """Why two sets of verdicts cannot be paired, empty where they can."""
    if first.keys() != second.keys():
        shared = len(first.keys() & second.keys())
        return f"the question sets differ: {len(first)} and {len(second)} questions, {shared} of them in both"
    changed = sum(any(first[one][key] != second[one][key] for key in ("gold", "images")) for one in first)
    return f"{changed} of {len(first)} questions have another right answer or image" if changed else ""


def _same_sets(base: Run, run: Run) -> bool:
    return bool(base.results["vocabulary"].get("sets") == run.results["vocabulary"].get("sets"))


def _accuracy(pairs: list[Pair], base: str, draws: int, seed: int) -> dict[str, Any]:
    values, images = _gains(pairs), [first["images"] for first, _ in pairs]
    macro = _macro(pairs, base, draws, seed)
    micro = paired_difference(values, [""] * len(pairs), images, "", draws, seed)
    text = f"share of right answers over the questions minus that of {base}, paired by question"
    micro = replace(micro, definition=f"{text}; interval by a bootstrap over images")
    test = mcnemar([first["correct"] == "1" for first, _ in pairs], [second["correct"] == "1" for _, second in pairs])
    return {**plain(macro), "micro": plain(micro), "mcnemar": test.to_dict()}


def _gains(pairs: list[Pair]) -> list[float]:
    return [float(second["correct"]) - float(first["correct"]) for first, second in pairs]


def _macro(pairs: list[Pair], base: str, draws: int, seed: int) -> Number:
    images = [first["images"] for first, _ in pairs]
    attributes = [first["attribute"] for first, _ in pairs]
    return paired_difference(_gains(pairs), attributes, images, f"accuracy minus that of {base}", draws, seed)


def _by_set(pairs: list[Pair], sets: Iterable[str]) -> dict[str, list[Pair]]:
    return {name: [pair for pair in pairs if pair[0]["attribute"] == name] for name in sets}


def _f1(
    by_set: Mapping[tuple[str, int], list[Pair]], sets: dict[str, dict[str, Any]], base: str, draws: int, seed: int
) -> Number:
    """Difference in macro-F1, mean over sets; the answers are read back from the values of the verdicts.

    Args:
        by_set: (set, seed) to its pairs.
        sets: Set to its task and classes.
        base: Name of the model that is subtracted.
        draws: Bootstrap draws.
        seed: Seed of the draws.
    """
    sides = []
    for side in (0, 1):
        tables = {}
        for (name, one), rows in by_set.items():
            classes, several = tuple(sets[name]["classes"]), sets[name]["task"] == "multi_label"
            gold = [read_labels(pair[side]["gold"], classes, several)[0] for pair in rows]
            read = [read_labels(pair[side]["predicted"], classes, several)[0] for pair in rows]
            tables[f"{name} {one}"] = LabelTable.of(sets[name]["task"], len(classes), gold, read)
        sides.append(tables)
    images = [pair[0]["images"] for rows in by_set.values() for pair in rows]
    value, interval = f1_difference(sides[0], sides[1], images, draws=draws, seed=seed)
    text = f"mean over the {len(sets)} sets of macro-F1 minus that of {base}; interval by a bootstrap over images"
    return Number(value, "difference of fractions", True, len(images), interval, text)


def _retention(pairs: list[Pair], base: str, draws: int, seed: int) -> Number:
    """The composite is a mean over components, which take the attributes' place."""
    number = paired_difference(
        [float(second["in_format"]) - float(first["in_format"]) for first, second in pairs],
        [first["task"] for first, _ in pairs],
        [first["images"] for first, _ in pairs],
        "",
        draws,
        seed,
    )
    text = f"composite retention minus that of {base}, paired by query; interval by a bootstrap over images"
    return replace(number, definition=text)
