"""Frozen models that a method reads beside the model that it trains.

A method names its companions (:meth:`medtune.objectives.base.Objective.companions`); the trainer builds them, places
them on the device, shards them where they are as large as the trained model, and freezes them. Files of theirs that the
objective's config names are part of the run's identity, by content. They are no part of the objective's own parameters and of no checkpoint.
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
        title: what it is, for messages: ``the task-specific model``.
        weights: folder or file of its weights. None takes the run's own base weights.
        load: makes it of ``weights``; it is replicated on every process, in fp32. None builds the run's own model with
            ``weights``, sharded and typed as the trained one is: a reference of the same architecture.

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
        """Whether it is built as the run's own model."""
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
        problems: where given, a companion that cannot be loaded is told here and left out, as ``medtune plan`` wants.

    Raises:
        MedtuneError: as a loader does, where ``problems`` is not given.
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
