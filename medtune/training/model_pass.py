"""A pass of the frozen model over items before training: batches are loaded by data workers, on all processes alike."""

from collections.abc import Callable, Generator
from contextlib import closing
from typing import Any

import torch

from medtune.data.training_set import TrainingSet, epoch_loader
from medtune.progress import tqdm
from medtune.training.config import TrainConfig
from medtune.training.precompute import Batches, Made
from medtune.training.runtime import Runtime
from medtune.training.validation import put_away


def model_pass(
    dataset: TrainingSet,
    batches: Batches,
    make: Callable[[dict[str, Any], list[int]], list[Made]],
    model: Any,
    config: TrainConfig,
    runtime: Runtime,
    title: str,
) -> Generator[list[Made], None, None]:
    """Yield what ``make`` makes of each batch. A collective: all processes have the same number of batches.

    Args:
        dataset: the items, addressed as in the first epoch.
        batches: positions in ``dataset``.
        make: takes a collated batch in host memory, and the positions of its rows; gradients are off.
        model: in evaluation mode during the pass, afterwards in training mode and sharded as before.
        config: the number of workers is read.
        runtime: rank of this process and number of processes.
        title: of the progress bar.
    """
    steps = [[[(number, True) for number in batch]] for batch in batches]
    pin = runtime.device.type == "cuda"
    model.eval()
    with (
        closing(epoch_loader(dataset, steps, 0, config.num_workers, pin_memory=pin)) as loaded,  # type: ignore[type-var]
        tqdm(total=len(steps), desc=title, unit="batch", disable=not runtime.is_main) as bar,
    ):
        for numbers in batches:
            (batch,) = runtime.on_all_ranks(lambda: next(loaded))
            with torch.no_grad():
                made = make(batch, numbers)
            yield made
            bar.update()
    model.train()
    put_away(model)  # FSDP leaves the root unsharded after a forward pass, with other parameter tensors
