"""The messages of a prompt, made of a sample's conversation."""

from medtune.data.sample import IMAGE_TAG, Message, Sample


def user_turn(sample: Sample, default: str = "") -> str:
    """Return the question: a sample's last user turn with its image tags.

    Args:
        sample: the sample.
        default: the question of a sample without words in this turn; the turn's tags are kept before it.
    """
    turns = [message.content.strip() for message in sample.messages if message.role == "user"]
    text = turns[-1] if turns else ""
    if text.replace(IMAGE_TAG, "").strip():
        return text
    tags = IMAGE_TAG * text.count(IMAGE_TAG)
    return f"{tags}\n{default}" if tags and default else default


def conversation(sample: Sample, prompt: str, history: bool = True) -> tuple[Message, ...]:
    """Return the messages of a prompt: what came before the question, and the prompt as the user's turn.

    Args:
        sample: the sample; what follows its last user turn is left out.
        prompt: made of :func:`user_turn`, so that it holds the tags of the turn that it replaces.
        history: whether earlier turns are shown. A prompt that is not the sample's own question is asked without them
            and without tags; system messages are always shown.
    """
    last = max((at for at, message in enumerate(sample.messages) if message.role == "user"), default=0)
    before = [message for message in sample.messages[:last] if history or message.role == "system"]
    if last == 0:  # no user turn, or the first message is one
        before = [message for message in sample.messages if message.role == "system"]
    return (*before, Message("user", prompt))
