"""Converts a sample's prompt to turns of texts and images, for programs that format the chat themselves."""

from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image

from medtune.data.sample import IMAGE_TAG, VIRTUAL_USER, Message, Sample
from medtune.errors import DataError

Part = str | Image.Image


@dataclass(frozen=True)
class Turn:
    """One turn of a prompt.

    Attributes:
        role: ``system``, ``user`` or ``assistant``.
        parts: Texts and images in their order.
    """

    role: str
    parts: list[Part]


def chat_turns(sample: Sample, images: list[Image.Image]) -> list[Turn]:
    """Convert a prompt to turns, in the same layout as medtune's own transforms.

    Each ``<image>`` tag in a user turn is replaced by the next image. Without tags, all images go to the start of the
    first user turn. Messages after the last user turn are left out, so that the model does not see an answer.

    Args:
        sample: The prompt.
        images: Its images, in the order of ``sample.images``.

    Raises:
        DataError: If there is no user turn, the number of images differs from the number of tags, or a virtual user
            speaks, whom these programs' chat formats do not have.
    """
    if any(message.role == VIRTUAL_USER for message in sample.messages):
        raise DataError(f"sample {sample.id} has a virtual user, whose turns only medtune's own models can write")
    last = max((i for i, message in enumerate(sample.messages) if message.role == "user"), default=None)
    if last is None:
        raise DataError(f"sample {sample.id} has no user message, so there is nothing to answer")
    messages = sample.messages[: last + 1]
    tags = sum(message.content.count(IMAGE_TAG) for message in messages if message.role == "user")
    if tags and tags != len(images):
        raise DataError(f"sample {sample.id} has {tags} {IMAGE_TAG} tags and {len(images)} images; make them equal")
    remaining = iter(images)
    turns, untagged = [], not tags
    for message in messages:
        first = untagged and message.role == "user"
        turns.append(Turn(message.role, [*(remaining if first else ()), *_parts(message, remaining)]))
        untagged = untagged and not first
    return turns


def _parts(message: Message, remaining: Iterator[Image.Image]) -> Iterator[Part]:
    """Yield the texts of a message and, in a user turn, one image for each tag."""
    pieces = message.content.split(IMAGE_TAG) if message.role == "user" else [message.content]
    for i, text in enumerate(pieces):
        if i:
            yield next(remaining)
        if text.strip():
            yield text.strip()
