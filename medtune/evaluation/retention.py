"""Instruction retention: does the model still do what it is asked, in words, after it was tuned on bare reports?

The paper calls the failure instruction-dependence (section 5.1.1): a model tuned under one instruction recites a report
whatever it is asked. Four rates measure it, each the share of answers that have the form asked for, right or wrong.
"""

from collections.abc import Sequence

from medtune.evaluation.metrics import bootstrap_interval, macro, proportion
from medtune.evaluation.protocols.base import Verdict
from medtune.evaluation.result import Number

COMPONENTS: dict[str, str] = {
    "multiple_choice": "share of multiple-choice answers in which the official parser reads the letter of an option",
    "open": "share of open answers that name a value of the attribute asked for and are no recited report",
    "yes_no": "share of yes/no answers that begin with yes or no and do not say both",
    "description": "share of answers to 'What does this image show?' that are sentences with a finite verb and an "
    "end mark, neither a recited report nor a letter",
}
"""Component (a protocol's name) and its definition."""


def retention(verdicts: Sequence[Verdict], *, draws: int = 1000, seed: int = 0) -> dict[str, Number]:
    """Compute the component rates and their plain mean, ``composite``, on the true images.

    Args:
        verdicts: Verdicts of one model; components without an answer are left out of the composite.
        draws: Bootstrap draws of the composite's interval; images are drawn.
        seed: Seed of the draws.

    Returns:
        Component to number, ``composite`` last; empty when no component was asked.
    """
    held = [one for one in verdicts if one.task in COMPONENTS and not one.swapped]
    names = [name for name in COMPONENTS if any(one.task == name for one in held)]
    if not names:
        return {}
    rates = {name: proportion([one.in_format for one in held if one.task == name], COMPONENTS[name]) for name in names}
    interval = bootstrap_interval(
        [float(one.in_format) for one in held],
        [one.task for one in held],
        [one.images for one in held],
        macro,
        draws=draws,
        seed=seed,
    )
    mean = sum(rates[name].value or 0.0 for name in names) / len(names)
    definition = f"plain mean of the rates: {', '.join(names)}; interval by a bootstrap over images"
    return {**rates, "composite": Number(mean, "fraction", True, len(held), interval, definition)}
