"""A sample's prompt as turns of text and pictures, for programs that lay out the chat themselves."""

from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image

from medtune.data.sample import IMAGE_TAG, Message, Sample
from medtune.errors import DataError

Part = str | Image.Image


@dataclass(frozen=True)
class Turn:
    """One turn of a prompt.

    Attributes:
        role: ``system``, ``user`` or ``assistant``.
        parts: Texts and pictures in their order.
    """

    role: str
    parts: list[Part]


def chat_turns(sample: Sample, images: list[Image.Image]) -> list[Turn]:
    """Lay a prompt out as medtune's own transforms do.

    Pictures stand where the text says ``<image>``, else at the start of the first user turn. What follows the last
    user turn is left out, so that no answer is shown.

    Args:
        sample: The prompt.
        images: Its pictures, in the order of ``sample.images``.

    Raises:
        DataError: If there is no user turn, or the number of pictures is not that of the tags.
    """
    last = max((i for i, message in enumerate(sample.messages) if message.role == "user"), default=None)
    if last is None:
        raise DataError(f"sample {sample.id} has no user message, so there is nothing to answer")
    messages = sample.messages[: last + 1]
    tags = sum(message.content.count(IMAGE_TAG) for message in messages if message.role == "user")
    if tags and tags != len(images):
        raise DataError(f"sample {sample.id} has {tags} {IMAGE_TAG} tags and {len(images)} images; make them equal")
    pictures = iter(images)
    turns, loose = [], not tags
    for message in messages:
        first = loose and message.role == "user"
        turns.append(Turn(message.role, [*(pictures if first else ()), *_parts(message, pictures)]))
        loose = loose and not first
    return turns


def _parts(message: Message, pictures: Iterator[Image.Image]) -> Iterator[Part]:
    """Yield the texts of a message, and a picture at each tag of a user's."""
    pieces = message.content.split(IMAGE_TAG) if message.role == "user" else [message.content]
    for i, text in enumerate(pieces):
        if i:
            yield next(pictures)
        if text.strip():
            yield text.strip()
