"""Shared code of the converters of attribute data sets: questions, limits and repeats."""

import dataclasses
import hashlib
import heapq
import random
from collections import Counter
from collections.abc import Iterable, Sequence

from medtune.data.sample import Message, Sample, printable
from medtune.errors import ConfigError, DataError


def option_question(id: str, image: str, attribute: str, question: str, options: Sequence[str], answer: str) -> Sample:
    """Return a question with options, in the form that :mod:`medtune.evaluation` uses.

    Raises:
        DataError: if the answer is not among the options.
    """
    if answer not in options:
        raise DataError(f"{printable(id)}: the value of {attribute!r} does not occur in training; correct the table.")
    messages = (Message("user", question), Message("assistant", answer))
    return Sample(id, (image,), messages, {"attribute": attribute, "options": list(options), "answer": answer})


def check_limits(**limits: int | None) -> None:
    """Refuse limits below 1.

    Raises:
        ConfigError: naming all limits.
    """
    if any(limit is not None and limit < 1 for limit in limits.values()):
        raise ConfigError(f"{' and '.join(limits)} must be at least 1, or null for no limit.")


def limited(samples: list[Sample], limit: int | None, seed: int, stream: str) -> list[Sample]:
    """Keep a random choice of samples; they keep their order."""
    if limit is None or limit >= len(samples):
        return samples
    indices = random.Random(f"{seed}/{stream}").sample(range(len(samples)), limit)
    return [samples[index] for index in sorted(indices)]


def limited_per_attribute(samples: list[Sample], limit: int | None, seed: int, split: str) -> list[Sample]:
    """Keep a random choice of the questions of each attribute; they keep their order."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.meta["attribute"], []).append(sample)
    kept = {s.id for name, group in groups.items() for s in limited(group, limit, seed, f"{split}/{name}")}
    return [sample for sample in samples if sample.id in kept]


def chosen(keys: Iterable[tuple[str, str]], limit: int, seed: int) -> set[str]:
    """Choose ids at random, with only the chosen ids in memory.

    Args:
        keys: (group, id) of each candidate.
        limit: number of ids of each group.
        seed: orders the candidates by a hash; the choice does not depend on the order in which they come.
    """
    heaps: dict[str, list[tuple[int, str]]] = {}
    for group, id in keys:
        heap = heaps.setdefault(group, [])
        rank = int.from_bytes(hashlib.sha256(f"{seed}/{id}".encode()).digest()[:8], "big")
        if len(heap) < limit:
            heapq.heappush(heap, (-rank, id))
        else:
            heapq.heappushpop(heap, (-rank, id))
    return {id for heap in heaps.values() for _, id in heap}


def repeated(samples: Sequence[Sample], times: int) -> list[Sample]:
    """Return all samples ``times`` times; the ids of repeats end in ``#2``, ``#3``, ...

    Raises:
        ConfigError: if ``times`` is below 1.
    """
    if times < 1:
        raise ConfigError(f"repeat_train is {times}; it must be at least 1 (every report once).")
    again = [dataclasses.replace(s, id=f"{s.id}#{time}") for time in range(2, times + 1) for s in samples]
    return [*samples, *again]


def value_counts(values: Iterable[str]) -> dict[str, int]:
    """Count each value; the most frequent come first, equally frequent ones in alphabetical order."""
    return dict(sorted(Counter(values).items(), key=lambda item: (-item[1], item[0])))


def per_attribute(samples: Iterable[Sample]) -> dict[str, int]:
    """Return the number of questions of each attribute."""
    return dict(Counter(sample.meta["attribute"] for sample in samples))
