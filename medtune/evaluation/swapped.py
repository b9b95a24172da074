"""Image-swap control: each question is asked on another question's image. A model that uses the image must do worse."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence

from medtune.data.randomness import sample_rng
from medtune.data.sample import IMAGE_TAG, Sample
from medtune.errors import DataError
from medtune.evaluation.protocols.base import Topic, topic


def swap_images(samples: Sequence[Sample], seed: int = 0, *, about: Callable[[Sample], Topic] = topic) -> list[Sample]:
    """Pair each question with another question's image.

    Within one attribute the images are permuted without a fixed point. As many questions as possible get an image whose
    own answer differs, so that a right answer cannot come from the shown image. An attribute with a single image takes
    an image from the rest of the file.

    Args:
        samples: Questions about an attribute, or classification questions, whose attribute is their set.
        seed: Seed of the permutation; the result depends only on the questions and the seed.
        about: Returns what a question is about: the attribute that images are permuted within, and the right answer.

    Returns:
        One sample for each question, in order, with the same id and messages, the images of its partner, and ``meta``
        with ``swapped: True``, ``swapped_with`` (the partner's id) and ``shown_answer`` (the answer for the shown
        image; None if the partner asks for another attribute).

    Raises:
        DataError: All questions show the same image, or none of the others shows as many images as a question has tags.
    """
    topics = [about(sample) for sample in samples]
    groups: dict[str, list[int]] = {}
    for index, subject in enumerate(topics):
        groups.setdefault(subject.attribute, []).append(index)
    partner: dict[int, int] = {}
    for attribute, members in sorted(groups.items()):
        partner.update(_deal([subject.answer for subject in topics], members, seed, attribute))
    for index, other in partner.items():
        if samples[index].images == samples[other].images or not _fits(samples[index], samples[other]):
            partner[index] = _any_other(samples, topics, index, seed)
    return [_with_images(samples, topics, index, partner[index]) for index in range(len(samples))]


def contrast_images(samples: Sequence[Sample], seed: int = 0) -> list[Sample]:
    """Show each question an image of its own attribute or set whose right answer is another one.

    Each image is drawn independently and uniformly from the candidates, so several questions may get the same image.
    The negatives of contrastive response tuning (VITask, Eq. 5) are drawn in the same way.

    Args:
        samples: As in :func:`swap_images`.
        seed: Seed of the draw.

    Returns:
        One sample for each question that has such an image, in order, with ``meta`` as in :func:`swap_images`.
    """
    topics = [topic(sample) for sample in samples]
    groups: dict[str, dict[str, list[int]]] = {}
    for index, subject in enumerate(topics):
        groups.setdefault(subject.attribute, {}).setdefault(subject.answer, []).append(index)
    contrasted = []
    for index, subject in enumerate(topics):
        others = [
            [member for member in members if _fits(samples[index], samples[member])]
            for answer, members in groups[subject.attribute].items()
            if answer != subject.answer
        ]
        if any(others):
            rng = sample_rng(seed, 0, index, f"contrast:{samples[index].id}")
            members = rng.choices(others, weights=[len(members) for members in others])[0]
            contrasted.append(_with_images(samples, topics, index, rng.choice(members)))
    return contrasted


def _deal(answers: Sequence[str], members: list[int], seed: int, attribute: str) -> dict[int, int]:
    """Permute the images of one attribute by a rotation.

    The questions are sorted by answer and rotated by the count of the most frequent answer. This changes every answer
    if no answer has more than half of the questions, and it never maps a question to itself.
    """
    order = list(members)
    sample_rng(seed, 0, 0, f"swap:{attribute}").shuffle(order)
    order.sort(key=lambda index: answers[index])  # a stable sort keeps the random order within one answer
    turn = max(Counter(answers[index] for index in order).values()) % len(order) or min(1, len(order) - 1)
    return {index: order[(place + turn) % len(order)] for place, index in enumerate(order)}


def _any_other(samples: Sequence[Sample], topics: Sequence[Topic], index: int, seed: int) -> int:
    """Return another partner for a question whose partner has the same image (several questions may share one)."""
    own = samples[index]
    other_images = [other for other, sample in enumerate(samples) if sample.images != own.images and _fits(own, sample)]
    if not other_images:
        raise DataError(
            "the images cannot be swapped: all questions show the same image, or a question has <image> tags for more "
            "or fewer images than every other; leave 'swapped' empty."
        )
    same = [other for other in other_images if topics[other].attribute == topics[index].attribute]
    differing = [other for other in same if topics[other].answer != topics[index].answer]
    return sample_rng(seed, 0, index, f"swap:{own.id}").choice(differing or same or other_images)


def _fits(sample: Sample, other: Sample) -> bool:
    """Return whether another question's images fit the image tags of a question."""
    tags = sum(message.content.count(IMAGE_TAG) for message in sample.messages if message.role == "user")
    return tags in (0, len(other.images))


def _with_images(samples: Sequence[Sample], topics: Sequence[Topic], index: int, partner: int) -> Sample:
    sample, other = samples[index], samples[partner]
    same_question = topics[partner].attribute == topics[index].attribute
    extra = {
        "swapped": True,
        "swapped_with": other.id,
        "shown_answer": topics[partner].answer if same_question else None,
    }
    return dataclasses.replace(sample, images=other.images, meta={**sample.meta, **extra})
