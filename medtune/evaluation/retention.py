"""Instruction retention: does the model still do what it is asked, in words, after it was tuned on bare reports?

The paper calls the failure instruction-dependence (section 5.1.1): a model tuned under one instruction recites a report
whatever it is asked. Four rates measure it, each the share of answers that have the form asked for, right or wrong.
"""

from collections.abc import Mapping, Sequence

from medtune.evaluation.metrics import bootstrap_interval, macro, proportion
from medtune.evaluation.protocols.base import Verdict
from medtune.evaluation.protocols.registry import REGISTRY
from medtune.evaluation.result import Metric

COMPONENTS: dict[str, str] = {name: protocol.retention for name, protocol in REGISTRY.items() if protocol.retention}
"""Component (a protocol's name) and its definition."""


def retention(
    verdicts: Sequence[Verdict], *, resamples: int = 1000, seed: int = 0, components: Mapping[str, str] = COMPONENTS
) -> dict[str, Metric]:
    """Compute the component rates and their plain mean, ``composite``, on the true images.

    Args:
        verdicts: Verdicts of one model; components without an answer are left out of the composite.
        resamples: Bootstrap draws of the composite's interval; images are drawn.
        seed: Seed of the draws.
        components: Protocol's name to the definition of its rate, in the order of the results.

    Returns:
        Component to number, ``composite`` last; empty when no component was asked.
    """
    held = [verdict for verdict in verdicts if verdict.task in components and not verdict.swapped]
    names = [name for name in components if any(verdict.task == name for verdict in held)]
    if not names:
        return {}
    rates = {
        name: proportion([verdict.in_format for verdict in held if verdict.task == name], components[name])
        for name in names
    }
    interval = bootstrap_interval(
        [float(verdict.in_format) for verdict in held],
        [verdict.task for verdict in held],
        [verdict.images for verdict in held],
        macro,
        resamples=resamples,
        seed=seed,
    )
    mean = sum(rates[name].value or 0.0 for name in names) / len(names)
    definition = f"plain mean of the rates: {', '.join(names)}; interval by a bootstrap over images"
    return {**rates, "composite": Metric(mean, "fraction", True, len(held), interval, definition)}
