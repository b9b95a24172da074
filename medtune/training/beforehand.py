"""What is computed once before the first step and kept on disk: image features, and outputs that a method asks for."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medtune.objectives.base import Stage
from medtune.training.data import BatchLoader
from medtune.training.feature_cache import check_frozen, use_features
from medtune.training.outputs import use_outputs
from medtune.training.parts import TrainedParts
from medtune.training.runtime import Runtime


def compute_beforehand(
    feeds: Mapping[str, BatchLoader],
    parts: TrainedParts,
    stages: Sequence[Stage],
    runtime: Runtime,
    say: Callable[[str], None],
) -> None:
    """Compute what is missing on disk, and let the batches hold it. A collective.

    Args:
        feeds: Name of the subfolder -> data set.
        parts: The model in its state before the first step, and the objective.
        stages: The stages of the run.
        runtime: Every process computes a share.
        say: Prints a line, on the first process.

    Raises:
        MedtuneError: If something would not stay the same during training, or a folder holds something else.
    """
    model: Any = parts.model
    objective: Any = parts.objective
    for name, feed in feeds.items():
        cache = feed.config.feature_cache
        if cache is not None:
            check_frozen(stages, parts, feed.dataset.transform)
            use_features(feed, Path(cache) / name, model, objective, runtime, say)
    precompute = objective.precompute()
    if precompute is not None:
        for name, feed in feeds.items():
            use_outputs(feed, Path(precompute.folder) / name, precompute, model, runtime, say)
