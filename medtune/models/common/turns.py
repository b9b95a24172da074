"""Who speaks when: the prompt for an answer, who answers it, and the order of speakers that some chat formats need."""

from medtune.data.sample import IMAGE_TAG, VIRTUAL_USER, Message, Sample
from medtune.errors import DataError


def prompt_messages(sample: Sample) -> tuple[Message, ...]:
    """The messages up to and including the last question: the prompt for an answer.

    If the virtual user's next question is to be written (:func:`next_speaker`), all messages before it.

    Raises:
        DataError: if there is no user turn.
    """
    if next_speaker(sample) == VIRTUAL_USER:
        return tuple(sample.messages[:-1])
    asking = ("user", VIRTUAL_USER)
    last = max((i for i, message in enumerate(sample.messages) if message.role in asking), default=None)
    if last is None:
        raise DataError(f"sample {sample.id} has no user message, so there is nothing to answer")
    return tuple(sample.messages[: last + 1])


def next_speaker(sample: Sample) -> str:
    """The role that the model shall speak in after a prompt.

    An empty message of the virtual user at the end says that the model shall write this question; otherwise the model
    answers as the assistant.
    """
    return VIRTUAL_USER if sample.messages[-1:] == (Message(VIRTUAL_USER, ""),) else "assistant"


def check_turns(sample: Sample, name: str) -> None:
    """Refuse what a chat format cannot hold in which user and assistant speak in turns.

    A sample may begin with the assistant, because a report without a question is a single answer.

    Args:
        sample: its messages.
        name: of the chat format, for messages.

    Raises:
        DataError: if one speaks twice in a row, a system message is not the first, or an image is not in a user's turn.
    """
    roles = [message.role for message in sample.messages]
    for number, (before, role) in enumerate(zip(["", *roles], roles, strict=False), start=1):
        if role == before or (role == "system" and number > 1):
            problem = f"message {number} is of the {role} " + ("again" if role == before else "and not the first")
            raise DataError(
                f"sample {sample.id}: {problem}; {name}'s chat format has at most one system message, which "
                "is the first, and then user and assistant in turns: join messages of one speaker"
            )
    for number, message in enumerate(sample.messages, start=1):
        if message.role != "user" and IMAGE_TAG in message.content:
            raise DataError(
                f"sample {sample.id}: message {number} ({message.role}) has {IMAGE_TAG}; {name}'s chat format "
                "has images in the user's turns only"
            )
