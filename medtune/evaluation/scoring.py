"""Computes the numbers of a protocol from verdicts: per attribute, macro over attributes, micro over questions."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np

from medtune.evaluation.baselines import CHANCE, MAJORITY, chance, majority
from medtune.evaluation.metrics import (
    BOOTSTRAP,
    balanced_accuracy,
    bootstrap_interval,
    few_differences,
    macro,
    nested_macro,
    rare_classes,
    share,
)
from medtune.evaluation.protocols.base import Verdict
from medtune.evaluation.result import Metric

Numbers = dict[str, Metric]
VerdictT = TypeVar("VerdictT", bound=Verdict)
SHARE = "share of right answers over the questions, unread ones wrong"
DIFFERS = "share of swapped questions whose shown image has another right answer: the most that a swap can cost"


def score_protocol(verdicts: Sequence[Verdict], *, resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Score one protocol's verdicts of one model.

    Args:
        verdicts: Verdicts on the true and on swapped images.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resampling.

    Returns:
        ``{"overall": numbers, "attributes": {attribute: numbers}, "swapped": numbers or None}``.
    """
    true = [verdict for verdict in verdicts if not verdict.swapped]
    swapped = [verdict for verdict in verdicts if verdict.swapped]
    groups = by_attribute(true)
    return {
        "overall": _overall(true, resamples, seed),
        "attributes": {name: _attribute(rows, resamples, seed) for name, rows in groups.items()},
        "swapped": swap_numbers(true, swapped, _overall(swapped, resamples, seed), resamples, seed)
        if swapped
        else None,
    }


def _attribute(rows: list[Verdict], resamples: int, seed: int) -> Numbers:
    gold = [verdict.gold for verdict in rows]
    interval = bootstrap_interval(
        [verdict.correct for verdict in rows],
        gold,
        [verdict.images for verdict in rows],
        macro,
        resamples=resamples,
        seed=seed,
    )
    balanced = balanced_accuracy(gold, [verdict.predicted for verdict in rows])
    caution = rare_classes(images_of_values(rows))
    return {
        "accuracy": share_of(rows, lambda verdict: verdict.correct, SHARE, resamples, seed),
        "balanced_accuracy": Metric(
            balanced,
            "fraction",
            True,
            len(rows),
            None if caution else interval,
            f"mean recall over the gold values; {BOOTSTRAP}",
            caution,
        ),
        "chance": chance(rows),
        "majority": majority(rows, resamples, seed),
        "unread": unread(rows, resamples, seed),
    }


def _overall(rows: list[Verdict], resamples: int, seed: int) -> Numbers:
    groups = list(by_attribute(rows).values())
    over = f"mean over the {len(groups)} attributes of"

    def mean(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return float(np.mean(known)) if known else None

    def number(
        value: float | None, better: bool | None, interval: tuple[float, float] | None, text: str, caution: str = ""
    ) -> Metric:
        return Metric(value, "fraction", better, len(rows), interval, text, caution)

    caution = rare_classes(
        {
            f"{name}: {value}": count
            for name, group in by_attribute(rows).items()
            for value, count in images_of_values(group).items()
        }
    )
    balanced = mean([balanced_accuracy([v.gold for v in group], [v.predicted for v in group]) for group in groups])
    return {
        "accuracy_macro": number(
            mean([float(np.mean([verdict.correct for verdict in group])) for group in groups]),
            True,
            macro_interval(rows, [float(verdict.correct) for verdict in rows], resamples, seed),
            f"{over} the share of right answers, unread ones wrong; {BOOTSTRAP}",
        ),
        "accuracy_micro": share_of(rows, lambda verdict: verdict.correct, SHARE, resamples, seed),
        "balanced_accuracy_macro": number(
            balanced,
            True,
            None if caution else _balanced_interval(rows, resamples, seed),
            f"{over} the mean recall over gold values; {BOOTSTRAP}",
            caution,
        ),
        "chance_macro": number(mean([chance(group).value for group in groups]), None, None, f"{over} {CHANCE}"),
        "chance_micro": chance(rows),
        "majority_macro": number(
            mean([majority(group).value for group in groups]),
            None,
            macro_interval(rows, [float(bool(verdict.prior)) for verdict in rows], resamples, seed),
            f"{over} {MAJORITY}; {BOOTSTRAP}",
        ),
        "majority_micro": majority(rows, resamples, seed),
        "unread": unread(rows, resamples, seed),
    }


def images_of_values(rows: Iterable[Verdict]) -> dict[str, int]:
    """Return the number of images of each gold value."""
    images: dict[str, set[tuple[str, ...]]] = {}
    for verdict in rows:
        images.setdefault(verdict.gold, set()).add(verdict.images)
    return {value: len(shown) for value, shown in images.items()}


def accuracy_drop(pairs: Sequence[tuple[Verdict, Verdict]], definition: str, resamples: int, seed: int) -> Metric:
    """Return the accuracy of the first verdicts minus that of the second, over attributes and paired by question.

    Args:
        pairs: Two verdicts on each question; its images are those of the first.
        definition: Text in the results.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resampling.
    """
    return paired_difference(
        [float(first.correct) - float(second.correct) for first, second in pairs],
        [first.attribute for first, _ in pairs],
        [first.images for first, _ in pairs],
        definition,
        resamples,
        seed,
    )


def swap_numbers(
    true: Sequence[Verdict], swapped: Sequence[Verdict], overall: Numbers, resamples: int, seed: int
) -> Numbers:
    """Return the accuracy on swapped images, and the loss by the swap on questions that were asked both ways.

    Args:
        true: Verdicts on the true images.
        swapped: Verdicts on swapped images.
        overall: Overall numbers on swapped images, including ``accuracy_macro`` and ``accuracy_micro``.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resampling.
    """
    on_true = {verdict.sample_id: verdict for verdict in true}
    pairs = [(on_true[verdict.sample_id], verdict) for verdict in swapped if verdict.sample_id in on_true]
    return {
        "accuracy_macro": overall["accuracy_macro"],
        "accuracy_micro": overall["accuracy_micro"],
        "drop_macro": accuracy_drop(pairs, "accuracy on true images minus on swapped ones", resamples, seed),
        "answer_differs": share_of(swapped, lambda verdict: verdict.shown_differs, DIFFERS, resamples, seed, None),
    }


def paired_difference(
    values: Sequence[float], attributes: Sequence[str], images: Sequence[object], text: str, resamples: int, seed: int
) -> Metric:
    """Return the mean over attributes of a paired difference, with an interval by a bootstrap over images.

    Args:
        values: The difference of each pair.
        attributes: The attribute of each pair.
        images: The image of each pair.
        text: Text for the definition: what was subtracted from what.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resampling.
    """
    groups: dict[str, list[float]] = {}
    for attribute, value in zip(attributes, values, strict=True):
        groups.setdefault(attribute, []).append(value)
    mean = float(np.mean([np.mean(group) for group in groups.values()])) if groups else None
    interval = _difference_interval(values, attributes, images, resamples, seed) if groups else None
    definition = f"mean over the {len(groups)} attributes of {text}, paired by question; {BOOTSTRAP}"
    return Metric(mean, "difference of fractions", True, len(values), interval, definition)


def _difference_interval(
    values: Sequence[float], attributes: Sequence[str], images: Sequence[object], resamples: int, seed: int
) -> tuple[float, float] | None:
    """Return the interval of a mean of paired differences; if all are equal, one that is right for few images too."""
    clusters = len({repr(image) for image in images})
    if clusters > 1 and len(set(values)) == 1 and values[0] in (-1.0, 0.0, 1.0):
        return few_differences(values[0], clusters)
    return bootstrap_interval(values, attributes, images, macro, resamples=resamples, seed=seed, binary=False)


def share_of(
    rows: Sequence[VerdictT],
    entry: Callable[[VerdictT], bool],
    definition: str,
    resamples: int,
    seed: int,
    higher_is_better: bool | None = True,
) -> Metric:
    """Return the share of verdicts of a kind, with an interval that allows for several questions on one image.

    Args:
        rows: The verdicts.
        entry: Whether a verdict is of that kind.
        definition: What the share is of.
        resamples: Number of bootstrap resamples, if questions share images.
        seed: Seed of the resampling.
        higher_is_better: As in :class:`~medtune.evaluation.result.Metric`.
    """
    entries, images = [entry(verdict) for verdict in rows], [verdict.images for verdict in rows]
    return share(entries, images, definition, resamples=resamples, seed=seed, higher_is_better=higher_is_better)


def unread(rows: Sequence[Verdict], resamples: int, seed: int) -> Metric:
    """Return the share of answers from which no answer could be read."""
    text = "share of answers from which no answer could be read; they count as wrong"
    return share_of(rows, lambda verdict: verdict.predicted is None, text, resamples, seed, False)


def macro_interval(
    rows: Sequence[Verdict], values: Sequence[float], resamples: int, seed: int
) -> tuple[float, float] | None:
    """Return the interval of the mean over attributes of 0/1 values, one for each verdict."""
    attributes, images = [verdict.attribute for verdict in rows], [verdict.images for verdict in rows]
    return bootstrap_interval(values, attributes, images, macro, resamples=resamples, seed=seed)


def _balanced_interval(rows: list[Verdict], resamples: int, seed: int) -> tuple[float, float] | None:
    cells = [(verdict.attribute, verdict.gold) for verdict in rows]
    if not cells:
        return None
    groups = [attribute for attribute, _ in sorted(set(cells), key=repr)]  # the order of bootstrap_interval's cells
    values, images = [float(verdict.correct) for verdict in rows], [verdict.images for verdict in rows]
    return bootstrap_interval(values, cells, images, nested_macro(groups), resamples=resamples, seed=seed)


def by_attribute(rows: Iterable[VerdictT]) -> dict[str, list[VerdictT]]:
    """Group verdicts by attribute, in alphabetical order."""
    groups: dict[str, list[VerdictT]] = {}
    for verdict in rows:
        groups.setdefault(verdict.attribute, []).append(verdict)
    return dict(sorted(groups.items()))
