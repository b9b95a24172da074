"""Llama-3's chat format: convert a sample's messages to tokens, and mark which of them are supervised."""

from collections.abc import Container

from medtune.data.sample import IMAGE_TAG, Message, Sample
from medtune.models.common.chat_template import (
    IGNORE_INDEX,
    LEARNED_ROLES,
    with_system,
)
from medtune.models.common.tokenizer import ChatTokenizer
from medtune.models.common.turns import next_speaker, prompt_messages


def lay_out(
    tokenizer: ChatTokenizer,
    sample: Sample,
    *,
    inference: bool = False,
    learned_roles: Container[str] = LEARNED_ROLES,
    supervise_header: bool = False,
) -> tuple[list[int], list[int]]:
    """Write a sample's messages in Llama-3's chat format.

    Image tokens are placed where the text says ``<image>``. Without tags they are placed at the start of the first user
    turn; in a sample without a user turn, after the first token. The words of the assistant and of a virtual user, and
    the ``<|eot_id|>`` after them, are supervised; everything else is not.

    Args:
        tokenizer: gives ids.
        sample: its messages, and the number of its images.
        inference: stop after the last question and open the turn of the next speaker.
        learned_roles: roles whose words are supervised.
        supervise_header: also supervise the headers of their turns, 4 tokens for the assistant in Llama-3's vocabulary.
            torchtune masks whole messages and therefore supervises them, as InstFree's official code does; Eq. 2 of
            the paper sums over the report.

    Returns:
        tokens and labels of equal length, not shifted; labels are -100 where not supervised.

    Raises:
        DataError: if ``inference`` is set for a sample without a user turn.
    """
    speaker = next_speaker(sample) if inference else None
    messages = with_system(prompt_messages(sample) if inference else sample.messages, speaker=speaker)
    tagged = any(IMAGE_TAG in message.content for message in messages if message.role == "user")
    untagged = [] if tagged else [tokenizer.image_id] * len(sample.images)
    first_user = next((i for i, message in enumerate(messages) if message.role == "user"), None)
    tokens = [tokenizer.bos_id, *(untagged if first_user is None else [])]
    labels = [IGNORE_INDEX] * len(tokens)
    for i, message in enumerate(messages):
        head = _header(tokenizer, message.role) + (untagged if i == first_user else [])
        body = [*_body(tokenizer, message), tokenizer.eot_id]
        tokens += head + body
        learned = message.role in learned_roles
        labels += head if learned and supervise_header else [IGNORE_INDEX] * len(head)
        labels += body if learned else [IGNORE_INDEX] * len(body)
    if speaker is not None:
        tokens += _header(tokenizer, speaker)
        labels = [IGNORE_INDEX] * len(tokens)
    return tokens, labels


def _header(tokenizer: ChatTokenizer, role: str) -> list[int]:
    # the blank line is encoded on its own, as in Meta's code
    name = tokenizer.encode(role)
    return [tokenizer.start_header_id, *name, tokenizer.end_header_id, *tokenizer.encode("\n\n")]


def _body(tokenizer: ChatTokenizer, message: Message) -> list[int]:
    if message.role != "user":
        return tokenizer.encode(message.content.strip())
    ids: list[int] = []
    for i, text in enumerate(message.content.split(IMAGE_TAG)):
        if i:
            ids.append(tokenizer.image_id)
        ids += tokenizer.encode(text.strip())
    return ids
