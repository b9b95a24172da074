"""The image-swap control: each question is asked on another question's image; a model that looks must do worse."""

import dataclasses
from collections.abc import Sequence

from medtune.data.randomness import sample_rng
from medtune.data.sample import Sample
from medtune.errors import DataError


def swap_images(samples: Sequence[Sample], seed: int = 0) -> list[Sample]:
    """Pair each question with another question's image.

    Questions are taken by attribute. Within one attribute the images are dealt out as a permutation without a fixed
    point, and so that as many questions as possible get an image whose own answer differs: there a right answer
    cannot come from the image that is shown. An attribute with a single image takes one from the rest of the file.

    Args:
        samples: Questions; ``meta`` holds ``attribute`` and ``answer``.
        seed: Seed of the dealing; the result depends on the questions and the seed alone.

    Returns:
        One sample for each question, in order, with the same id and messages, the images of its partner, and ``meta``
        with ``swapped: True``, ``swapped_with`` (the partner's id) and ``shown_answer`` (the answer that the shown
        image has, None where the partner asks for another attribute).

    Raises:
        DataError: All questions show one image.
    """
    groups: dict[str, list[int]] = {}
    for index, sample in enumerate(samples):
        groups.setdefault(sample.meta["attribute"], []).append(index)
    partner: dict[int, int] = {}
    for attribute, members in sorted(groups.items()):
        partner.update(_deal(samples, members, seed, attribute))
    for index, other in partner.items():
        if samples[index].images == samples[other].images:
            partner[index] = _any_other(samples, index, seed)
    return [_with_images(sample, samples[partner[index]]) for index, sample in enumerate(samples)]


def _deal(samples: Sequence[Sample], members: list[int], seed: int, attribute: str) -> dict[int, int]:
    """Deal the images of one attribute by rotation.

    With the questions sorted by answer, a turn by the largest answer's count changes every answer wherever that is
    possible (no answer holds more than half), and never maps a question to itself.
    """
    order = list(members)
    sample_rng(seed, 0, 0, f"swap:{attribute}").shuffle(order)
    order.sort(key=lambda index: str(samples[index].meta["answer"]))  # stable: random within one answer
    counts: dict[str, int] = {}
    for index in order:
        counts[samples[index].meta["answer"]] = counts.get(samples[index].meta["answer"], 0) + 1
    turn = max(counts.values()) % len(order) or min(1, len(order) - 1)
    return {index: order[(place + turn) % len(order)] for place, index in enumerate(order)}


def _any_other(samples: Sequence[Sample], index: int, seed: int) -> int:
    """A partner for a question whose deal gave back its own image: several questions may share one image."""
    own = samples[index]
    fit = [other for other, sample in enumerate(samples) if sample.images != own.images]
    if not fit:
        raise DataError("the images cannot be swapped: all questions show the same image; leave 'swapped' empty.")
    same = [other for other in fit if samples[other].meta["attribute"] == own.meta["attribute"]]
    differing = [other for other in same if samples[other].meta["answer"] != own.meta["answer"]]
    return sample_rng(seed, 0, index, f"swap:{own.id}").choice(differing or same or fit)


def _with_images(sample: Sample, other: Sample) -> Sample:
    same_question = other.meta["attribute"] == sample.meta["attribute"]
    extra = {"swapped": True, "swapped_with": other.id, "shown_answer": other.meta["answer"] if same_question else None}
    return dataclasses.replace(sample, images=other.images, meta={**sample.meta, **extra})
