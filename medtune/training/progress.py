"""The progress of a run: the number of steps done determines stage, epoch, position and learning rate."""

import math
from dataclasses import dataclass

from medtune.objectives.base import Stage
from medtune.training.config import ScheduleConfig


@dataclass(frozen=True)
class Position:
    """The position of a step: index of the stage, step within the stage, data epoch, and step within the epoch."""

    stage_index: int
    stage_step: int
    epoch: int
    epoch_step: int


@dataclass(frozen=True)
class Progress:
    """Maps the global step to a :class:`Position`; every stage begins with a new epoch of the data.

    Attributes:
        stages: The objective's stages.
        steps_per_epoch: Optimizer steps in one pass over the data.
    """

    stages: tuple[Stage, ...]
    steps_per_epoch: int

    def length(self, index: int) -> int:
        """Steps of a stage."""
        stage = self.stages[index]
        return stage.steps if stage.steps is not None else stage.epochs * self.steps_per_epoch

    @property
    def total(self) -> int:
        """Steps of the run."""
        return sum(self.length(index) for index in range(len(self.stages)))

    def first_step(self, index: int) -> int:
        """Global step at which a stage begins."""
        return sum(self.length(earlier) for earlier in range(index))

    def position(self, step: int) -> Position:
        """The position of global step ``step`` (0 is the first); the end of the run belongs to its last stage."""
        epoch = 0
        for index in range(len(self.stages)):
            length = self.length(index)
            if step < length or index == len(self.stages) - 1:
                return Position(index, step, epoch + step // self.steps_per_epoch, step % self.steps_per_epoch)
            step -= length
            epoch += math.ceil(length / self.steps_per_epoch)
        raise ValueError("a run needs at least one stage")


def rate_factor(schedule: ScheduleConfig, step: int, total: int) -> float:
    """Learning-rate factor of one step of a stage.

    Args:
        schedule: Warm-up and shape.
        step: Step within the stage, from 0.
        total: Steps of the stage.

    Returns:
        A factor between 0 and 1; the first warm-up step is 1/warmup, never 0.
    """
    warmup = max(schedule.warmup_steps, math.ceil(schedule.warmup_ratio * total))
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    shape = {"constant": 1.0, "linear": 1.0 - progress, "cosine": 0.5 * (1.0 + math.cos(math.pi * progress))}
    return schedule.min_ratio + (1.0 - schedule.min_ratio) * shape[schedule.kind]
