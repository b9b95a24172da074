"""Randomness that depends only on the sample, never on the worker that loads it."""

import hashlib
import random


def sample_rng(seed: int, epoch: int, index: int, stream: str = "") -> random.Random:
    """Return the generator of one sample in one epoch.

    Args:
        seed: the run's seed.
        epoch: which pass over the data, from 0.
        index: the sample's position in its source.
        stream: a name for each independent use ("negatives", "distractors"), so that one use does not shift another.

    Returns:
        A generator seeded by a SHA-256 of the four arguments, the same on every machine and in every worker.
    """
    key = f"{seed}/{epoch}/{index}/{stream}".encode()
    return random.Random(int.from_bytes(hashlib.sha256(key).digest(), "big"))
