"""The prompts of the three steps, as requests to a generator.

Every text has an id that names its image's row and its place, and its random numbers come from this id and a seed. A
text is therefore the same in every batch, on every process and after every interruption.
"""

from dataclasses import dataclass
from typing import Any

from medtune.data.sample import VIRTUAL_USER, Message, Sample
from medtune.data.source import SampleSource
from medtune.generation.requests import Request
from medtune.generation.self_questioning.pictures import Picture
from medtune.generation.self_questioning.settings import Settings

DESCRIBE, ASK, ANSWER = "describe", "ask", "answer"


def description_id(picture: Picture) -> str:
    """Id of a picture's description."""
    return f"{picture.id}/description"


def question_id(picture: Picture, place: int) -> str:
    """Id of a picture's question at ``place``, from 0; also the id of the candidate that is made of it."""
    return f"{picture.id}/question/{place}"


def answer_id(picture: Picture, place: int, seed: int) -> str:
    """Id of one answer to a question."""
    return f"{question_id(picture, place)}/answer/{seed}"


def every_id(picture: Picture, settings: Settings) -> list[str]:
    """Ids of all texts of a picture, in the order of the file."""
    ids = [description_id(picture)]
    for place in range(settings.ask.count):
        ids += [question_id(picture, place), *(answer_id(picture, place, s) for s in settings.answer.seeds)]
    return ids


@dataclass(frozen=True)
class Prompts:
    """Makes requests.

    Attributes:
        source: Opens the images.
        settings: What is asked, and how it is sampled.
    """

    source: SampleSource
    settings: Settings

    def describe(self, picture: Picture) -> Request:
        """The request for a description."""
        settings = self.settings.describe
        return self._request(
            description_id(picture), picture, (Message("user", settings.prompt),), settings.max_new_tokens,
            sampling=settings.sampling,
        )  # fmt: skip

    def ask(self, picture: Picture, description: str) -> list[Request]:
        """The requests for questions, all after the same beginning: the image, the first turn and its answer."""
        settings = self.settings.ask
        asker = Message(VIRTUAL_USER, "") if settings.prompt is None else Message("user", settings.prompt)
        turns = (Message("user", self.settings.describe.prompt), Message("assistant", description), asker)
        return [
            self._request(question_id(picture, place), picture, turns, settings.max_new_tokens, settings.sampling)
            for place in range(settings.count)
        ]

    def answer(self, picture: Picture, place: int, question: str) -> list[Request]:
        """The requests for the answers to a question: a new conversation of the image and the question alone."""
        settings = self.settings.answer
        turns = (Message("user", question),)
        return [
            self._request(
                answer_id(picture, place, seed), picture, turns, settings.max_new_tokens, settings.sampling_of(seed)
            )
            for seed in settings.seeds
        ]

    def _request(self, name: str, picture: Picture, turns: tuple[Message, ...], most: int, sampling: Any) -> Request:
        sample = Sample(name, picture.images, turns)
        return Request(name, sample, self.source, max_new_tokens=most, sampling=sampling)
