"""Frozen models that a method uses in addition to the model that it trains.

A method names its companions (:meth:`medtune.objectives.base.Objective.companions`). The trainer builds them, places
them on the device, freezes them, and shards those that are as large as the trained model. The contents of the files
that the objective's config names for them are part of the run's identity. Companions are not among the objective's own
parameters, and not in checkpoints.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from medtune.errors import MedtuneError

Companions = Mapping[str, Any]
"""Name -> the frozen model (an ``nn.Module``), as the trainer built it."""


@dataclass(frozen=True)
class Companion:
    """One frozen model.

    Attributes:
        title: a description for messages, for example ``the task-specific model``.
        weights: folder or file of its weights. None takes the run's own base weights.
        load: loads the model from ``weights``; it is then replicated on every process, in fp32. None builds the run's
            own model with ``weights``, with the sharding and dtype of the trained one: a reference of the same
            architecture.

    Raises:
        ValueError: for a loader without weights.
    """

    title: str
    weights: str | None = None
    load: Callable[[str], nn.Module] | None = None

    def __post_init__(self) -> None:
        if self.load is not None and self.weights is None:
            raise ValueError(f"{self.title}: a loader needs the weights that it shall load")

    @property
    def is_reference(self) -> bool:
        """Whether it is built like the run's own model."""
        return self.load is None

    def loaded(self) -> nn.Module:
        """The model of a companion with a loader, frozen and in evaluation mode, on the CPU.

        Raises:
            MedtuneError: as the loader does.
        """
        assert self.load is not None and self.weights is not None
        return self.load(self.weights).eval().requires_grad_(False)


def load_companions(companions: Mapping[str, Companion], problems: list[str] | None = None) -> dict[str, nn.Module]:
    """Load every companion that has a loader.

    Args:
        companions: as the objective names them.
        problems: if given, a companion that cannot be loaded is reported in this list and left out (for
            ``medtune plan``).

    Raises:
        MedtuneError: the loader's error, if ``problems`` is not given.
    """
    found: dict[str, nn.Module] = {}
    for name, companion in companions.items():
        if companion.is_reference:
            continue
        try:
            found[name] = companion.loaded()
        except MedtuneError as error:
            if problems is None:
                raise
            problems.append(f"{companion.title} is not here: {error}")
    return found
