"""Validation on held-out data during training, the best value so far, and early stopping."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule

from medtune.config import nearest
from medtune.errors import ConfigError
from medtune.objectives.base import Objective
from medtune.training.building import DTYPES
from medtune.training.config import LOSS, TrainConfig
from medtune.training.data import BatchLoader, on_device
from medtune.training.questions import Answered, QuestionSet
from medtune.training.runtime import Runtime


@dataclass
class EarlyStopping:
    """The best validation so far; saved with every checkpoint.

    Attributes:
        value: Best value of the monitored metric in the last stage.
        step: The step of this value.
        worse: Number of validations since then.
        checked: Step of the last validation; a validation that a signal prevented is done on resuming.
    """

    value: float | None = None
    step: int | None = None
    worse: int = 0
    checked: int | None = None

    @classmethod
    def of(cls, saved: dict[str, Any]) -> "EarlyStopping":
        """Read the values of a checkpoint; files of older versions have the key ``loss`` in place of ``value``."""
        values = {("value" if key == "loss" else key): value for key, value in saved.items()}
        if values.get("value") is not None and math.isnan(values["value"]):
            values["value"] = None  # with which nothing compares
        return cls(**values)

    def update(self, step: int, value: float | None, higher_is_better: bool = False) -> bool:
        """Record one more validation; returns whether it is the best so far. One without a value, or of NaN, is not."""
        if value is None or math.isnan(value):
            better = False
        else:
            better = self.value is None or (value > self.value if higher_is_better else value < self.value)
        if better:
            self.value, self.step = value, step
        self.worse = 0 if better else self.worse + 1
        return better

    def exhausted(self, patience: int | None) -> bool:
        """Whether the last ``patience`` validations were not better than the best."""
        return patience is not None and self.worse >= patience


@dataclass(frozen=True)
class Validated:
    """The result of one validation.

    Attributes:
        losses: ``validation_loss``, and the objective's metrics as ``validation_<name>``.
        answered: The answers to the question set, if there is one.
    """

    losses: dict[str, float]
    answered: Answered | None = None

    def row(self) -> dict[str, Any]:
        """The line of ``metrics.jsonl``."""
        return {**self.losses, **(self.answered.row() if self.answered else {})}

    def monitored(self, config: TrainConfig, objective: Objective) -> tuple[float | None, bool]:
        """Value of the monitored metric (None where no answer gave it one), and whether higher is better.

        Raises:
            ConfigError: If the metric does not exist (naming the nearest one), or has no known direction.
        """
        name, direction = config.monitor, config.monitor_direction
        numbers = self.answered.metrics if self.answered else {}
        if name in self.losses:
            higher = False if name == LOSS else objective.higher_is_better.get(name.removeprefix("validation_"))
            value: float | None = self.losses[name]
        elif name in numbers:
            higher, value = numbers[name].higher_is_better, numbers[name].value
        else:
            raise ConfigError(f"monitor: there is no metric {name!r}; {nearest(name, [*self.losses, *numbers])}")
        if direction == "auto" and higher is None:
            raise ConfigError(f"monitor: say whether higher values of {name} are better: monitor_direction=higher")
        return value, bool(higher) if direction == "auto" else direction == "higher"


class Validation:
    """Measures the loss and metrics on held-out samples, and the answers to a fixed question set.

    Args:
        config: The config of the run.
        feed: The held-out samples, if there are any.
        questions: The question set, if there is one.

    Raises:
        ConfigError: If ``monitor`` names what this run does not measure.
    """

    def __init__(self, config: TrainConfig, feed: BatchLoader | None, questions: QuestionSet | None) -> None:
        self.config, self.feed, self.questions = config, feed, questions
        # The objective's metrics begin with "validation_"; a slash alone may belong to one of them.
        wants_questions = "/" in config.monitor and not config.monitor.startswith("validation_")
        if wants_questions and questions is not None:
            protocol = config.monitor.partition("/")[0]
            if protocol not in questions.protocols:
                raise ConfigError(
                    f"monitor: {config.monitor} belongs to the protocol {protocol}, and questions.protocols asks "
                    f"{', '.join(questions.protocols)}"
                )
        missing = "questions" if wants_questions else "dataset_val"
        if self.possible and (questions if wants_questions else feed) is None:
            raise ConfigError(
                f"monitor: {config.monitor} needs the key {missing!r}; give it, or monitor another metric"
            )
        if config.early_stopping_patience is not None and not self.possible:
            raise ConfigError(
                "early_stopping_patience needs dataset_val or questions; without them nothing is measured"
            )

    @property
    def possible(self) -> bool:
        """Whether there is anything to measure."""
        return self.feed is not None or self.questions is not None

    def measure(
        self, model: Any, objective: Objective, runtime: Runtime, seen: Callable[[dict[str, Any]], None]
    ) -> Validated:
        """Validate once. A collective.

        Args:
            model: Set to evaluation mode, and afterwards back to training mode.
            objective: Likewise.
            runtime: Sums over the processes.
            seen: Called with every batch (to record skipped samples).
        """
        losses = validation_metrics(model, objective, self.feed, runtime, seen) if self.feed else {}
        answered = None
        if self.questions is not None:
            answered = self.questions.ask(model, DTYPES[self.config.dtype])
            put_away(model)
        return Validated(losses, answered)


@torch.no_grad()
def validation_metrics(
    model: Any, objective: Objective, feed: BatchLoader, runtime: Runtime, seen: Callable[[dict[str, Any]], None]
) -> dict[str, float]:
    """Mean loss and metrics over the validation set, the same on every process.

    The mean is weighted as in training (by supervised tokens or images). Random choices are those of the first epoch,
    so that all validations use the same samples in the same form.

    Returns:
        ``validation_loss``, and ``validation_<name>`` for each of the objective's metrics.
    """
    model.eval()
    objective.eval()
    sums: dict[str, torch.Tensor] = {}
    for batches in feed.epoch(0):
        for batch in batches:
            seen(batch)
            output = model.compute(objective, on_device(batch, runtime.device))
            for name, value in ((LOSS, output.loss_sum), ("weight", output.weight), *_named(output.metrics)):
                sums[name] = sums.get(name, 0.0) + value.detach().double()
    put_away(model)
    model.train()
    objective.train()
    totals = runtime.sum(torch.stack(list(sums.values()))).tolist()
    by_name = dict(zip(sums, totals, strict=True))
    weight = by_name.pop("weight") or 1.0
    return {name: value / weight for name, value in by_name.items()}


def _named(metrics: dict[str, torch.Tensor]) -> list[tuple[str, torch.Tensor]]:
    return [(f"validation_{name}", value) for name, value in metrics.items()]


def put_away(model: Any) -> None:
    """Shard the root's parameters again; without this, only a backward pass would do it."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
