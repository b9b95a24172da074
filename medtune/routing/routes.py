"""From a classifier's scores to the adapter that answers (ME-VLIP, section 2.3)."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from medtune.errors import ConfigError


@dataclass(frozen=True)
class Route:
    """Which adapter answers a question, and why.

    Attributes:
        task: The most probable task.
        score: Its probability, from 0 to 1.
        adapter: Name of the adapter; None is the base model.
    """

    task: str
    score: float
    adapter: str | None


class TaskRouter(Protocol):
    """Tells the task of a question from its text.

    Attributes:
        labels: Names of the tasks, in the order of the columns of :meth:`probabilities`.
    """

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the tasks."""
        ...

    def probabilities(self, questions: Sequence[str]) -> NDArray[np.float64]:
        """Return the probability of each task, ``[questions, labels]``; each row sums to 1."""
        ...

    def identity(self) -> dict[str, Any]:
        """Return the values on which the probabilities depend, by content and not by path."""
        ...


def choose(
    probabilities: NDArray[np.float64],
    labels: Sequence[str],
    adapters: Collection[str],
    threshold: float,
    fallback: str | None,
) -> list[Route]:
    """Choose the adapter of each question: that of the most probable task, if its probability reaches the threshold.

    Otherwise, and for a task that has no adapter, the fallback answers (the multi-task adapter in the paper).

    Args:
        probabilities: Probability of each task, ``[questions, labels]``.
        labels: Name of each column. An adapter is chosen for a task if it has the task's name.
        adapters: Names of the adapters that are loaded.
        threshold: Least probability, from 0 to 1. A score equal to the threshold reaches it. With 0 the fallback
            answers tasks without adapter only, above 1 it answers all questions.
        fallback: Name of an adapter, or None for the base model.

    Raises:
        ConfigError: If the fallback is not among the adapters, the shapes differ, or a probability is not finite.
    """
    if fallback is not None and fallback not in adapters:
        raise ConfigError(f"the fallback {fallback!r} is not among the adapters {', '.join(sorted(adapters))}.")
    if probabilities.ndim != 2 or probabilities.shape[1] != len(labels):
        raise ConfigError(
            f"the router gave scores of shape {list(probabilities.shape)} for {len(labels)} tasks, [questions, "
            f"{len(labels)}] is needed."
        )
    if not np.isfinite(probabilities).all():
        raise ConfigError("the router gave a score that is not a finite number; its weights may be damaged.")
    routes = []
    for row in probabilities:
        best = int(row.argmax())
        task, score = labels[best], float(row[best])
        routes.append(Route(task, score, task if score >= threshold and task in adapters else fallback))
    return routes
