"""The data side of a run: looked through once, then a plan of steps per epoch, read lazily."""

from collections.abc import Iterator
from typing import Any

from medtune.config import Component, instantiate
from medtune.data.batching import BatchPlan, split_step
from medtune.data.preflight import Preflight, preflight
from medtune.data.training_set import TrainingSet, epoch_loader
from medtune.objectives.base import SampleTransform
from medtune.training.config import TrainConfig
from medtune.training.runtime import Runtime


class DataFeed:
    """One data set, from its builder to the micro-batches of this process.

    Args:
        component: Builder of the source.
        sample_transform: What the objective does to a sample.
        transform: The model's transform.
        config: Batch sizes, seed, workers, ``on_error``.
        runtime: This process's place in the world.
        shuffle: Off for validation.
    """

    def __init__(
        self,
        component: Component,
        sample_transform: SampleTransform,
        transform: Any,
        config: TrainConfig,
        runtime: Runtime,
        shuffle: bool = True,
    ) -> None:
        self.source = instantiate(component)
        self.config, self.runtime, self.transform = config, runtime, transform
        self.checked: Preflight = preflight(
            self.source, transform, sample_transform, config.on_error, runtime.is_main, config.seed
        )
        self.dataset = TrainingSet(self.source, sample_transform, transform, config.seed, config.on_error)
        self.plan = BatchPlan(
            self.checked.lengths,
            config.batch_size * config.gradient_accumulation_steps * runtime.world,
            config.seed,
            shuffle=shuffle,
            bucket=config.bucket,
            tiles=self.checked.tiles,
            indices=self.checked.indices,
        )

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass."""
        return len(self.plan)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[list[dict[str, Any]]]:
        """This process's micro-batches, one list per optimizer step, from ``start_step`` on."""
        shares = [
            split_step(
                step,
                self.runtime.world,
                self.runtime.rank,
                self.config.gradient_accumulation_steps,
                self.config.batch_size,
            )
            for step in self.plan.steps(epoch)
        ]
        pin = self.runtime.device.type == "cuda"
        return epoch_loader(self.dataset, shares, epoch, self.transform, self.config.num_workers, start_step, pin)
