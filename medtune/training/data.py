"""The data of a run: checked once, then planned as steps of each epoch, and read lazily."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from medtune.config import Component, instantiate
from medtune.data.balance import balanced_weights
from medtune.data.batching import BatchPlan, split_step
from medtune.data.items import BatchItems
from medtune.data.preflight import Preflight, preflight
from medtune.data.training_set import TrainingSet, epoch_loader
from medtune.objectives.base import Objective, Stage
from medtune.training.checking import check_record
from medtune.training.config import TrainConfig
from medtune.training.runtime import Runtime


class BatchLoader:
    """Builds one data set, checks it, and yields the micro-batches of this process.

    Args:
        component: Builder of the source.
        objective: The method; it changes samples and makes items of them.
        transform: The model's transform.
        config: Batch sizes, seed, workers, sampling, ``on_error``, and where the result of the check is kept.
        runtime: Rank of this process and number of processes.
        stages: The stages of the run, with different names; loading begins with the first one.
        shuffle: False for validation, which uses every sample once, whatever ``sampling`` is.
    """

    def __init__(
        self,
        component: Component,
        objective: Objective,
        transform: Any,
        config: TrainConfig,
        runtime: Runtime,
        stages: Sequence[Stage],
        shuffle: bool = True,
    ) -> None:
        self.config, self.runtime = config, runtime
        self.source = runtime.on_all_ranks(lambda: instantiate(component))
        self.checked: Preflight = runtime.on_rank0(
            lambda: preflight(
                self.source,
                transform,
                lambda: [objective.items(self.source, None, stage) for stage in stages],
                config.on_error,
                seed=config.seed,
                num_workers=config.num_workers,
                record=check_record(config, self.source, stages),
            )
        )
        # Made for all stages now, so that an invalid stage is rejected before the first step.
        self._items: dict[str, BatchItems] = runtime.on_all_ranks(
            lambda: {stage.name: objective.items(self.source, self.checked.indices, stage) for stage in stages}
        )
        self.dataset = TrainingSet(self.source, self._items[stages[0].name], transform, config.seed, config.on_error)
        balanced = shuffle and config.sampling == "balanced"
        self.plan = BatchPlan(
            # The length of a labelled image reveals its label: if sorted, whole steps would have one class only.
            np.where(self.checked.labelled, 0, self.checked.lengths),
            config.batch_size * config.gradient_accumulation_steps * runtime.world,
            config.seed,
            shuffle=shuffle,
            bucket=config.bucket,
            tiles=self.checked.tiles,
            indices=self.checked.indices,
            weights=runtime.on_rank0(lambda: balanced_weights(self._reports())) if balanced else None,
        )

    def _reports(self) -> Iterator[str]:
        """The supervised text of each usable sample, before the method changes it."""
        for index in self.checked.indices.tolist():
            yield "\n".join(turn.content for turn in self.source[index].messages if turn.role == "assistant")

    def begin_stage(self, stage: Stage) -> None:
        """Make the items of this stage from now on; epochs that have already begun are not changed."""
        self.dataset = self.dataset.with_items(self._items[stage.name])

    def fixed_items(self) -> Any:
        """The items, which must be the same in every stage.

        Raises:
            ValueError: If they are not; this is an error of the method.
        """
        first, *others = self._items.values()
        if any(items != first for items in others):
            raise ValueError("outputs are computed before training for items that are the same in every stage")
        return first

    def replace_items(self, items: BatchItems) -> None:
        """Make these items in every stage."""
        self._items = dict.fromkeys(self._items, items)
        self.dataset = self.dataset.with_items(items)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass."""
        return len(self.plan)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[list[dict[str, Any]]]:
        """This process's micro-batches, one list per optimizer step, from ``start_step`` on.

        Raises:
            DataError: On every process, for a sample that one of them cannot use.
        """
        config, runtime = self.config, self.runtime
        shares = [
            split_step(step, runtime.world, runtime.rank, config.gradient_accumulation_steps, config.batch_size)
            for step in self.plan.steps(epoch)
        ]
        pin = runtime.device.type == "cuda"
        batches = epoch_loader(self.dataset, shares, epoch, config.num_workers, start_step, pin)
        for _ in shares[start_step:]:
            yield runtime.on_all_ranks(lambda: next(batches))


def on_device(value: Any, device: torch.device) -> Any:
    """A batch with its tensors, at any depth, moved to the device; lists (ids) stay as they are."""
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {key: on_device(item, device) for key, item in value.items()}
    return value
