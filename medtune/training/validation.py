"""Validation: the loss on held-out samples, the best of them, and when to give up."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule

from medtune.training.data import DataFeed, on_device
from medtune.training.runtime import Runtime


@dataclass
class Best:
    """The best validation so far; saved with every checkpoint.

    Attributes:
        loss: Lowest validation loss of the last stage.
        step: Where it was.
        worse: Validations since then.
        checked: Step of the last validation, so that one that a signal cut off is made up for on resuming.
    """

    loss: float | None = None
    step: int | None = None
    worse: int = 0
    checked: int | None = None

    def update(self, step: int, loss: float) -> bool:
        """Take one more validation in; whether it is the best."""
        better = self.loss is None or loss < self.loss
        if better:
            self.loss, self.step = loss, step
        self.worse = 0 if better else self.worse + 1
        return better

    def exhausted(self, patience: int | None) -> bool:
        """Whether ``patience`` validations have brought nothing better."""
        return patience is not None and self.worse >= patience


@torch.no_grad()
def validation_loss(
    model: Any, objective: Any, feed: DataFeed, runtime: Runtime, seen: Callable[[dict[str, Any]], None]
) -> float:
    """Mean loss per supervised token over the validation set, the same on every process.

    Samples are shown as in the first epoch, so two validations see the same words.

    Args:
        model: Put into evaluation mode, and back.
        objective: Likewise.
        feed: The validation data.
        runtime: Where the sums meet.
        seen: Told of every batch (it notes skipped samples).
    """
    model.eval()
    objective.eval()
    sums = torch.zeros(2, dtype=torch.float64, device=runtime.device)
    for batches in feed.epoch(0):
        for batch in batches:
            seen(batch)
            output = model.compute(objective, on_device(batch, runtime.device))
            sums += torch.stack([output.loss_sum.double(), output.weight.double()])
    for module in model.modules():
        if isinstance(module, FSDPModule):  # only a backward pass would have put the root's whole parameters away
            module.reshard()
    model.train()
    objective.train()
    loss_sum, weight = runtime.sum(sums).tolist()
    return loss_sum / max(weight, 1.0)
