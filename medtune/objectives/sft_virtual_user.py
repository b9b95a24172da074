"""The virtual user of ``sft``: which human turns become questions that the model learns to ask."""

import random
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from medtune.data.items import Row, SampleItems, check_answer, measured_row
from medtune.data.sample import IMAGE_TAG, VIRTUAL_USER, Message, Sample
from medtune.data.source import SampleSource
from medtune.errors import ConfigError, DataError


def later_questions(sample: Sample) -> list[int]:
    """Places of the human turns that a virtual user may speak.

    The first human turn is never among them: the model is asked about the image before it asks. Neither is a turn
    without text, or one that shows an image, which the model cannot write. A conversation without an image has none,
    because a virtual user asks about images.
    """
    if not sample.images:
        return []
    human = [place for place, message in enumerate(sample.messages) if message.role == "user"]
    return [place for place in human[1:] if _askable(sample.messages[place])]


def _askable(message: Message) -> bool:
    return bool(message.content.strip()) and IMAGE_TAG not in message.content


@dataclass(frozen=True)
class VirtualUserTurns:
    """Lets a virtual user speak in later human turns, each with the same probability.

    Attributes:
        ratio: the probability, SQ-LLaVA's ``sq_r``; 1 for every later turn, the sum of the paper.
    """

    ratio: float

    def __call__(self, sample: Sample, rng: random.Random) -> Sample:
        """Change the roles of a sample; there is one draw for each later human turn."""
        chosen = {place for place in later_questions(sample) if rng.random() < self.ratio}
        turns = (
            Message(VIRTUAL_USER, message.content) if place in chosen else message
            for place, message in enumerate(sample.messages)
        )
        return replace(sample, messages=tuple(turns))


@dataclass(frozen=True)
class VirtualUserItems(SampleItems):
    """Items whose virtual user's turns are drawn anew in every epoch."""

    def measure(self, source: SampleSource, index: int, rng: random.Random, transform: Any) -> tuple[Row, ...]:
        """Return the size with a virtual user in every later turn, which no epoch exceeds.

        Raises:
            DataError: as :meth:`SampleItems.measure`.
        """
        sample = source[index]
        longest = VirtualUserTurns(1.0)(sample, rng)
        check_answer(source, longest)
        return (measured_row(source, longest, source.image_sizes(sample), transform),)


def require_questions(source: SampleSource, usable: np.ndarray) -> None:
    """Refuse data in which no virtual user could ever speak; reading stops at the first conversation with one.

    Raises:
        ConfigError: naming the data and the remedy.
    """
    for index in usable:
        try:
            if later_questions(source[int(index)]):
                return
        except DataError:  # the row has become unusable since the check; the run reports it when it is reached
            continue
    raise ConfigError(
        f"{source.name}: objective.virtual_user has nothing to learn, because no conversation about an image has a "
        "second question; put the questions about one image into one conversation, or set objective.virtual_user=null"
    )
