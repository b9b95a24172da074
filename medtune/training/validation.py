"""What is measured on held-out data while a run trains, the best of it, and when to give up."""

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
        step: Where it was.
        worse: Validations since then.
        checked: Step of the last validation, so that one that a signal cut off is made up for on resuming.
    """

    value: float | None = None
    step: int | None = None
    worse: int = 0
    checked: int | None = None

    @classmethod
    def of(cls, saved: dict[str, Any]) -> "EarlyStopping":
        """Read what a checkpoint holds; earlier versions, which monitored the loss alone, call the value ``loss``."""
        return cls(**{("value" if key == "loss" else key): value for key, value in saved.items()})

    def update(self, step: int, value: float | None, higher_is_better: bool = False) -> bool:
        """Take one more validation in; whether it is the best. One without a value is not."""
        if value is None:
            better = False
        else:
            better = self.value is None or (value > self.value if higher_is_better else value < self.value)
        if better:
            self.value, self.step = value, step
        self.worse = 0 if better else self.worse + 1
        return better

    def exhausted(self, patience: int | None) -> bool:
        """Whether ``patience`` validations have brought nothing better."""
        return patience is not None and self.worse >= patience


@dataclass(frozen=True)
class Validated:
    """One validation.

    Attributes:
        losses: ``validation_loss``, and the objective's metrics as ``validation_<name>``.
        answered: Of the question set, if there is one.
    """

    losses: dict[str, float]
    answered: Answered | None = None

    def row(self) -> dict[str, Any]:
        """The line of ``metrics.jsonl``."""
        return {**self.losses, **(self.answered.row() if self.answered else {})}

    def monitored(self, config: TrainConfig, objective: Objective) -> tuple[float | None, bool]:
        """Value of the monitored metric (None where no answer gave it one), and whether higher is better.

        Raises:
            ConfigError: Naming what there is, if the metric is not among it or has no known direction.
        """
        name, told = config.monitor, config.monitor_direction
        numbers = self.answered.metrics if self.answered else {}
        if name in self.losses:
            higher = False if name == LOSS else objective.higher_is_better.get(name.removeprefix("validation_"))
            value: float | None = self.losses[name]
        elif name in numbers:
            higher, value = numbers[name].higher_is_better, numbers[name].value
        else:
            raise ConfigError(f"monitor: there is no metric {name!r}; {nearest(name, [*self.losses, *numbers])}")
        if told == "auto" and higher is None:
            raise ConfigError(f"monitor: say whether higher values of {name} are better: monitor_direction=higher")
        return value, bool(higher) if told == "auto" else told == "higher"


class Validation:
    """Validates a model: the loss and metrics of held-out samples, and the answers to a fixed question set.

    Args:
        config: The run.
        feed: The held-out samples, if there are any.
        questions: The question set, if there is one.

    Raises:
        ConfigError: If ``monitor`` names what this run does not measure.
    """

    def __init__(self, config: TrainConfig, feed: BatchLoader | None, questions: QuestionSet | None) -> None:
        self.config, self.feed, self.questions = config, feed, questions
        wants_questions = "/" in config.monitor
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
            model: Put into evaluation mode, and back.
            objective: Likewise.
            runtime: Where the sums meet.
            seen: Told of every batch (it notes skipped samples).
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

    The mean is over what the objective weighs by (supervised tokens, images). Samples are shown as in the first epoch,
    so two validations see the same words.

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
    found = runtime.sum(torch.stack(list(sums.values()))).tolist()
    by_name = dict(zip(sums, found, strict=True))
    weight = max(by_name.pop("weight"), 1.0)
    return {name: value / weight for name, value in by_name.items()}


def _named(metrics: dict[str, torch.Tensor]) -> list[tuple[str, torch.Tensor]]:
    return [(f"validation_{name}", value) for name, value in metrics.items()]


def put_away(model: Any) -> None:
    """Shard the root's parameters again; only a backward pass would have done so."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
