"""Instruction retention: whether a model that was trained on bare reports still follows other instructions.

The paper calls the failure instruction-dependence (section 5.1.1): a model trained with one instruction recites a
report as the answer to any question. Four rates measure it. Each is the share of answers in the requested form, whether
they are right or wrong.
"""

from collections.abc import Mapping, Sequence

from medtune.evaluation.metrics import bootstrap_interval, macro
from medtune.evaluation.protocols.base import Verdict
from medtune.evaluation.protocols.registry import REGISTRY
from medtune.evaluation.result import Metric
from medtune.evaluation.scoring import share_of

COMPONENTS: dict[str, str] = {name: protocol.retention for name, protocol in REGISTRY.items() if protocol.retention}
"""Component (a protocol's name) and its definition."""


def retention(
    verdicts: Sequence[Verdict], *, resamples: int = 1000, seed: int = 0, components: Mapping[str, str] = COMPONENTS
) -> dict[str, Metric]:
    """Compute the component rates and their unweighted mean, ``composite``, on the true images.

    Args:
        verdicts: Verdicts of one model; components without an answer are left out of the composite.
        resamples: Number of bootstrap resamples (over images) for the composite's interval.
        seed: Seed of the resampling.
        components: Protocol's name to the definition of its rate, in the order of the results.

    Returns:
        Component to number, ``composite`` last; empty if no component was asked.
    """
    true_verdicts = [verdict for verdict in verdicts if verdict.task in components and not verdict.swapped]
    names = [name for name in components if any(verdict.task == name for verdict in true_verdicts)]
    if not names:
        return {}
    rates = {
        name: share_of(
            [verdict for verdict in true_verdicts if verdict.task == name],
            lambda verdict: verdict.in_format,
            components[name],
            resamples,
            seed,
        )
        for name in names
    }
    interval = bootstrap_interval(
        [float(verdict.in_format) for verdict in true_verdicts],
        [verdict.task for verdict in true_verdicts],
        [verdict.images for verdict in true_verdicts],
        macro,
        resamples=resamples,
        seed=seed,
    )
    mean = sum(rates[name].value or 0.0 for name in names) / len(names)
    definition = f"plain mean of the rates: {', '.join(names)}; interval by a bootstrap over images"
    return {**rates, "composite": Metric(mean, "fraction", True, len(true_verdicts), interval, definition)}
