"""Outputs of the model in its state before the first step, computed once for each item and kept on disk.

A method that compares the model with what it was (DPO's reference) then needs no second model and no second pass. The
folder is refused if the outputs would be others: other weights, data, template, transform or settings.
"""

import json
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from medtune.config import to_plain
from medtune.data.features import find_pictures
from medtune.data.precomputed import DigestedItems, PrecomputedItems
from medtune.data.shards import Shards
from medtune.models.lora.merge import adapters_are_zero
from medtune.objectives.base import Precompute
from medtune.training.adapter import adapter_identity
from medtune.training.contents import run_contents
from medtune.training.data import BatchLoader, on_device
from medtune.training.fingerprint import base_fingerprint
from medtune.training.model_pass import model_pass
from medtune.training.precompute import Batches, Made, PrecomputeStore
from medtune.training.runtime import Runtime

SHARD_ITEMS = 512
_DIGEST_BYTES = 8


def use_outputs(
    feed: BatchLoader, folder: Path, precompute: Precompute, model: Any, runtime: Runtime, say: Callable[[str], None]
) -> None:
    """Give the items of a data set their outputs; those that are not on disk are computed now. A collective.

    Args:
        feed: The data set; its batches then hold ``precomputed``.
        folder: Where the outputs are kept; all processes must be able to read it.
        precompute: What is computed.
        model: The model in its state before the first step.
        runtime: Every process computes a share.
        say: Prints a line, on the first process.

    Raises:
        ConfigError: If the folder holds outputs of something else, or the disk has too little space.
        DataError: If a sample cannot be used and ``on_error`` is ``raise``.
    """
    items = DigestedItems(feed.fixed_items())
    idle = all(runtime.gather(adapters_are_zero(model)))  # every process sees its shards alone
    size = precompute.item_bytes + _DIGEST_BYTES
    store = PrecomputeStore(
        folder,
        lambda: outputs_identity(feed, precompute, idle),
        np.full(len(feed.checked.indices), size),
        runtime,
        key=precompute.key,
        what=precompute.what,
        shard_bytes=SHARD_ITEMS * size,
    )
    shards = Shards(folder, store.starts(), key=precompute.key)
    described = f"{precompute.what} of {len(feed.checked.indices):,} samples, {size} bytes each"
    making = _Making(feed, items, precompute, model, runtime)
    store.fill(shards, making.run, batch_size=feed.config.batch_size, described=described, say=say)
    numbers = np.full(len(feed.source), -1)
    numbers[feed.checked.indices] = np.arange(len(feed.checked.indices))
    feed.replace_items(PrecomputedItems(items, shards, numbers))


def outputs_identity(feed: BatchLoader, precompute: Precompute, idle: bool) -> dict[str, Any]:
    """Everything that the outputs depend on, as plain values.

    Args:
        feed: the data set.
        precompute: what is computed.
        idle: whether the model's adapters add nothing yet, so that they may have any size.
    """
    config = feed.config
    transform: Any = feed.dataset.transform
    component = to_plain(config.model)
    if config.checkpoint and idle:
        component = {key: value for key, value in component.items() if "lora" not in key or key == "_component_"}
    made_of = {
        "weights": base_fingerprint(config.checkpoint),
        "adapter": adapter_identity(config),
        "seed of the weights": None if config.checkpoint else config.seed,
        "model": component,
        "dtype": config.dtype,
        "transform": {key: value for key, value in to_plain(config.transform).items() if key != "path"},
        "tiles": transform.tiler.settings(),
        "tokenizer": run_contents(config)["tokenizer"],
        "data": feed.source.fingerprint(),
        "usable": feed.checked.usable,
        "pictures": find_pictures(feed.source, feed.checked.indices.tolist(), transform).digest,
        "settings": dict(precompute.settings),
    }
    return json.loads(json.dumps(made_of))


@dataclass
class _Making:
    """Computes outputs."""

    feed: BatchLoader
    items: DigestedItems
    precompute: Precompute
    model: Any
    runtime: Runtime

    def run(self, batches: Batches) -> Generator[list[Made], None, None]:
        """Yield the outputs of each batch of item numbers."""
        feed, what = self.feed, self.precompute.what
        dataset = feed.dataset.with_items(self.items)
        rows = [[int(feed.checked.indices[number]) for number in batch] for batch in batches]
        yield from model_pass(dataset, rows, self._made, self.model, feed.config, self.runtime, what)

    def _made(self, batch: dict[str, Any], rows: list[int]) -> list[Made]:
        outputs = self.model.compute(self.precompute.compute, on_device(batch, self.runtime.device))
        arrays: dict[str, Tensor] = {**{name: values.cpu() for name, values in outputs.items()}}
        arrays["digest"] = batch["digests"]
        reasons = dict(batch["skipped"])
        made = []
        for place, (row, name) in enumerate(zip(rows, batch["ids"], strict=True)):
            wanted = self.feed.source[row].id
            # A sample that cannot be read was replaced by another one.
            failed = None if name == wanted else reasons.get(wanted, "the sample could not be read")
            made.append(Made({key: values[place : place + 1] for key, values in arrays.items()}, failed))
        return made
