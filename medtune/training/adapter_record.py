"""What stands beside an exported adapter: the tasks and data that it was trained on, and how far."""

import json
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from medtune import __version__
from medtune.data.source import SampleSource
from medtune.errors import DataError
from medtune.training.config import TrainConfig
from medtune.training.fingerprint import base_fingerprint

RECORD_NAME = "medtune_adapter.json"


def task_counts(source: SampleSource) -> dict[str, int]:
    """Number of samples of each task (``meta.task``), the most frequent first; empty if the data name no tasks."""
    counts: Counter[str] = Counter()
    for row in range(len(source)):
        try:
            task = source[row].meta.get("task")
        except DataError:
            continue
        if isinstance(task, str) and task:
            counts[task] += 1
    return dict(counts.most_common())


def adapter_record(config: TrainConfig, source: SampleSource, step: int, metrics: Path) -> dict[str, Any]:
    """The record of an adapter.

    Args:
        config: The run's config.
        source: Its training data.
        step: Optimizer steps so far.
        metrics: The run's ``metrics.jsonl``, whose newest training and validation rows are taken.

    Returns:
        ``tasks`` (task -> samples), ``samples``, ``data`` (the data's fingerprint), ``base`` (folder and fingerprint of
        the weights below the adapter), ``seed``, ``steps``, ``metrics`` and ``medtune`` (its version).
    """
    return {
        "tasks": task_counts(source),
        "samples": len(source),
        "data": source.fingerprint(),
        "base": {"checkpoint": config.checkpoint, "weights": base_fingerprint(config.checkpoint)},
        "seed": config.seed,
        "steps": step,
        "metrics": _newest(metrics),
        "medtune": __version__,
    }


def record_later(*arguments: Any) -> Callable[[], dict[str, Any]]:
    """:func:`adapter_record` with these arguments, which reads the training data only when it is called."""
    return partial(adapter_record, *arguments)


def _newest(path: Path) -> dict[str, Any]:
    """The newest training loss, and every number of the newest validation, with the steps that they belong to."""
    found: dict[str, Any] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
        except ValueError:  # a line that a killed run did not finish
            continue
        kind = "validation" if "validation_loss" in row else "training" if "loss" in row else None
        if kind is not None:
            kept = ("step", "loss") if kind == "training" else row
            found[kind] = {key: row[key] for key in kept if isinstance(row.get(key), int | float)}
    return found
