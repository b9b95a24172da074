"""Items together with outputs of a frozen model that were computed for each of them before training."""

import hashlib
import random
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from medtune.data.items import BatchItems
from medtune.data.shards import Shards
from medtune.data.source import SampleSource, place
from medtune.errors import ConfigError


class FixedItems(BatchItems, Protocol):
    """Items that are the same in every epoch, so that a frozen model's outputs can be computed once for each."""

    def contents(self, item: dict[str, Any]) -> Iterable[int]:
        """Return the numbers that the model reads in an item: its tokens, and which of them are supervised."""
        ...


@dataclass(frozen=True)
class DigestedItems:
    """Items with a digest of their contents, for computing their outputs.

    Attributes:
        items: makes the items.
    """

    items: FixedItems

    def __call__(self, source: SampleSource, index: int, rng: random.Random, transform: Any) -> dict[str, Any]:
        """Make the item, with ``digest``."""
        item = self.items(source, index, rng, transform)
        return {**item, "digest": _digest(self.items.contents(item))}

    def blank(self, item: dict[str, Any]) -> dict[str, Any]:
        """Return the item with nothing to learn in it."""
        return {**self.items.blank(item), "digest": item["digest"]}

    def collate(self, items: list[dict[str, Any]], transform: Any) -> dict[str, Any]:
        """Return the batch, with ``digests`` [b]."""
        digests = torch.tensor([item["digest"] for item in items], dtype=torch.int64)
        return {**self.items.collate(items, transform), "digests": digests}


@dataclass(frozen=True)
class PrecomputedItems:
    """Items with their outputs; an item whose contents are not those of its outputs is refused.

    The identity of the folder covers files and settings. The digest of each item also covers what no setting names,
    such as a template that another version of the code writes.

    Attributes:
        items: makes the items.
        shards: the outputs, with ``digest``.
        numbers: number of the outputs of each sample of the source; -1 where there are none.
    """

    items: DigestedItems
    shards: Shards
    numbers: np.ndarray

    def __call__(self, source: SampleSource, index: int, rng: random.Random, transform: Any) -> dict[str, Any]:
        """Make the item, with ``precomputed``.

        Raises:
            DataError: if the outputs could not be computed.
            ConfigError: if they are those of other contents.
        """
        item = self.items(source, index, rng, transform)
        kept = self.shards.item(int(self.numbers[index])) if self.numbers[index] >= 0 else {}
        if not kept or int(kept["digest"]) != item["digest"]:
            folder = shlex.quote(str(self.shards.folder))
            raise ConfigError(
                f"{self.shards.key}: the results in {folder} are those of other tokens than "
                f"{place(source, source[index])} has now. To make them anew, run: rm -r {folder}, and start again."
            )
        return {**item, "precomputed": {name: values for name, values in kept.items() if name != "digest"}}

    def blank(self, item: dict[str, Any]) -> dict[str, Any]:
        """Return the item with nothing to learn in it."""
        return {**self.items.blank(item), "precomputed": item["precomputed"]}

    def collate(self, items: list[dict[str, Any]], transform: Any) -> dict[str, Any]:
        """Return the batch, with the outputs stacked under ``precomputed``."""
        names = items[0]["precomputed"]
        kept = {name: torch.cat([item["precomputed"][name] for item in items]) for name in names}
        return {**self.items.collate(items, transform), "precomputed": kept}


def _digest(contents: Iterable[int]) -> int:
    raw = np.fromiter(contents, dtype="<i8").tobytes()
    return int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "little", signed=True)
