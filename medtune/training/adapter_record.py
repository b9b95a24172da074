"""What stands beside an exported adapter: the tasks and data that it was trained on, and how far."""

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from medtune import __version__
from medtune.config import Component, build, instantiate, saved_keys
from medtune.data.source import SampleSource
from medtune.errors import DataError, MedtuneError
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


@dataclass
class _Trained:
    """The keys of a run's ``config.yaml`` that the record names; its data may no longer exist."""

    checkpoint: str | None = None
    seed: int = 0
    dataset: Component | None = None


def record_of_checkpoint(run: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """The record of an adapter that is exported from a checkpoint after its training.

    Args:
        run: The run's folder.
        values: The checkpoint's plain values.

    Returns:
        As :func:`adapter_record`, of the checkpoint's step. ``tasks`` and ``samples`` are None if the training data are
        not here any more, or are not those that were trained on.
    """
    config = build(_Trained, saved_keys(run / "config.yaml", _Trained), str(run / "config.yaml"))
    known, step = values.get("identity", {}), int(values.get("step", 0))
    source = None
    if config.dataset is not None:
        with contextlib.suppress(MedtuneError):
            found = instantiate(config.dataset)
            source = found if found.fingerprint() == known.get("data") else None
    return {
        "tasks": None if source is None else task_counts(source),
        "samples": None if source is None else len(source),
        "data": known.get("data"),
        "base": {"checkpoint": config.checkpoint, "weights": known.get("weights")},
        "seed": config.seed,
        "steps": step,
        "metrics": _newest(run / "metrics.jsonl", step),
        "medtune": __version__,
    }


def write_record(record: Mapping[str, Any], folder: Path) -> None:
    """Write a record beside an adapter."""
    (folder / RECORD_NAME).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def record_later(*arguments: Any) -> Callable[[], dict[str, Any]]:
    """:func:`adapter_record` with these arguments, which reads the training data only when it is called."""
    return partial(adapter_record, *arguments)


def _newest(path: Path, until: int | None = None) -> dict[str, Any]:
    """The newest training loss, and every number of the newest validation, with the steps that they belong to.

    With ``until``, rows of later steps are passed over.
    """
    found: dict[str, Any] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
        except ValueError:  # a line that a killed run did not finish
            continue
        kind = "training" if "loss" in row else "validation"  # which may be of questions alone, without a loss
        if until is None or row.get("step", 0) <= until:
            kept = ("step", "loss") if kind == "training" else row
            found[kind] = {key: row[key] for key in kept if isinstance(row.get(key), int | float)}
    return found
