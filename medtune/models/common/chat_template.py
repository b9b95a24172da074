"""Chat formats as data, and the conversion of a sample's messages to tokens in such a format."""

import re
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, replace

from medtune.data.sample import IMAGE_TAG, VIRTUAL_USER, Message, Sample
from medtune.errors import DataError, ModelError
from medtune.losses.cross_entropy import IGNORE_INDEX
from medtune.models.common.tokenizer import TextTokenizer
from medtune.models.common.turns import check_turns, next_speaker, prompt_messages

Turn = tuple[str, str]
LEARNED_ROLES = ("assistant", VIRTUAL_USER)
"""Roles whose words are supervised."""
VIRTUAL_USER_SYSTEM = "A virtual user looks at the same images and asks further questions about them."
"""End of the system message of a conversation in which a virtual user speaks."""


class SampleTooLong(DataError):
    """A sample has more tokens than the transform allows. Nothing is ever cut."""


def with_system(
    messages: Sequence[Message], default_system: str = "", speaker: str | None = None
) -> tuple[Message, ...]:
    """Give a conversation its system message.

    The default is put before messages without one. If a virtual user speaks, the system message ends with
    ``VIRTUAL_USER_SYSTEM``, and a conversation without one gets this sentence as its system message.

    Args:
        messages: the turns.
        default_system: the chat format's own system message; empty for none.
        speaker: the role whose turn is opened after the messages; None if none is.
    """
    if default_system and not any(message.role == "system" for message in messages):
        messages = (Message("system", default_system), *messages)
    if VIRTUAL_USER not in (speaker, *(message.role for message in messages)):
        return tuple(messages)
    if not any(message.role == "system" for message in messages):
        return Message("system", VIRTUAL_USER_SYSTEM), *messages
    first = next(i for i, message in enumerate(messages) if message.role == "system")
    text = f"{messages[first].content.strip()} {VIRTUAL_USER_SYSTEM}"
    return *messages[:first], Message("system", text), *messages[first + 1 :]


@dataclass(frozen=True)
class ChatTemplate:
    """A chat format.

    Attributes:
        name: for messages.
        special: the special tokens that occur in the other fields; everything else in them is plain text.
        system: text before and after a system message.
        user: text before and after a user message.
        assistant: text before and after an assistant message; the text after it begins with the special token that ends
            the turn, which is supervised.
        stop: tokens that end an answer.
        pad: the token that fills short rows.
        bos: a token before everything, or an empty string.
        default_system: system message of samples that have none; an empty string writes no system turn.
        answer_prefix: text that begins every answer (Vicuna: a space, which is part of the answer's first token).
        image_separator: text after each image that has no ``<image>`` tag.
        virtual_user: text before and after a question that the model asks itself; the text after it begins with a
            special token, which is supervised. None for formats without a virtual user.
        image_break: text on both sides of each image (Gemma: an empty line); a message's own text is then stripped
            beside images.
        alternates: whether a format needs the user and the assistant to speak in turns, and images in the user's turns
            (Gemma); other samples are refused.
        system_end: for formats without a system turn (Mistral's, Gemma's): the text between a system message and what
            follows it in the first user turn. None writes a turn of its own, as ``system`` says.

    Raises:
        ModelError: if a supervised turn does not end with a special token.
    """

    name: str
    special: tuple[str, ...]
    system: Turn
    user: Turn
    assistant: Turn
    stop: tuple[str, ...]
    pad: str
    bos: str = ""
    default_system: str = ""
    answer_prefix: str = ""
    image_separator: str = "\n"
    virtual_user: Turn | None = None
    image_break: str = ""
    alternates: bool = False
    system_end: str | None = None

    def __post_init__(self) -> None:
        if not self.assistant[1].startswith(self.special):
            raise ModelError(f"chat template {self.name}: no special token stands right after an answer")
        if self.virtual_user is not None and not self.virtual_user[1].startswith(self.special):
            raise ModelError(
                f"chat template {self.name}: no special token stands right after a virtual user's question"
            )

    @property
    def after_space(self) -> bool:
        """Whether a user's message stands after a space, as in Vicuna's and Mistral's formats."""
        return self.user[0].endswith(" ")

    def turn(self, role: str) -> Turn:
        """Text before and after a message of ``role``.

        Raises:
            ModelError: if the format has no virtual user.
        """
        if role != VIRTUAL_USER:
            return {"system": self.system, "user": self.user, "assistant": self.assistant}[role]
        if self.virtual_user is None:
            raise ModelError(f"chat template {self.name} has no virtual user; train another model to ask questions")
        return self.virtual_user

    def split(self, text: str) -> list[str]:
        """Split a text of this template at its special tokens, which are kept."""
        pattern = "|".join(re.escape(token) for token in sorted(self.special, key=len, reverse=True))
        return [part for part in re.split(f"({pattern})", text) if part]


def chatml(
    default_system: str = "", *, end: str = "<|im_end|>\n", bos: str = "", pad: str = "<|endoftext|>"
) -> ChatTemplate:
    """ChatML as in Qwen2.5; with ``end="<|im_end|>"`` and a ``bos``, as in InternVL2 for InternLM2.

    Args:
        default_system: system message of samples that have none.
        end: text after each message.
        bos: a token before everything.
        pad: fills short rows, and ends an answer too.
    """
    return ChatTemplate(
        name="chatml",
        special=("<|im_start|>", "<|im_end|>"),
        system=("<|im_start|>system\n", end),
        user=("<|im_start|>user\n", end),
        assistant=("<|im_start|>assistant\n", end),
        virtual_user=("<|im_start|>virtual_user\n", end),
        stop=("<|im_end|>", pad),
        pad=pad,
        bos=bos,
        default_system=default_system,
    )


VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


def vicuna(pad: str = "<unk>") -> ChatTemplate:
    """Vicuna v1.1, the format of LLaVA-1.5: ``USER: ... ASSISTANT: ...</s>``.

    Args:
        pad: fills short rows.
    """
    return ChatTemplate(
        name="vicuna",
        special=("</s>",),
        system=("", " "),
        user=("USER: ", " "),
        assistant=("ASSISTANT:", "</s>"),
        virtual_user=("VUSER:", "</s> "),  # SQ-LLaVA's: a space follows the end of the question
        stop=("</s>",),
        pad=pad,
        bos="<s>",
        default_system=VICUNA_SYSTEM,
        answer_prefix=" ",
    )


def llama3() -> ChatTemplate:
    """Llama-3's format, without a default system message."""
    return ChatTemplate(
        name="llama3",
        special=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        system=("<|start_header_id|>system<|end_header_id|>\n\n", "<|eot_id|>"),
        user=("<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"),
        assistant=("<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>"),
        virtual_user=("<|start_header_id|>virtual_user<|end_header_id|>\n\n", "<|eot_id|>"),
        stop=("<|end_of_text|>", "<|eot_id|>", "<|eom_id|>"),
        pad="<|finetune_right_pad_id|>",
        bos="<|begin_of_text|>",
        image_separator="",
    )


@dataclass(frozen=True)
class _Piece:
    """Text or token ids; supervised (``learned``) or not."""

    content: str | Sequence[int]
    learned: bool = False


def image_places(sample: Sample) -> int:
    """Number of places for images in a sample: its ``<image>`` tags, or without tags one for each image."""
    tags = sum(message.content.count(IMAGE_TAG) for message in sample.messages if message.role == "user")
    return tags or len(sample.images)


def lay_out(
    template: ChatTemplate,
    tokenizer: TextTokenizer,
    sample: Sample,
    images: Sequence[Sequence[int]],
    *,
    inference: bool = False,
    learned_roles: Container[str] = LEARNED_ROLES,
    supervise_header: bool = False,
) -> tuple[list[int], list[int]]:
    """Write a sample's messages in a chat format.

    Images are placed where the text says ``<image>``. Without tags they are placed at the start of the first user turn,
    each followed by the template's separator; in a sample without a user turn, before the first turn that is not a
    system turn. The words of the assistant and of a virtual user, and the special token after them, are supervised.
    The text between two special tokens or images is encoded as one string.

    Args:
        template: the format.
        tokenizer: gives ids.
        sample: its messages.
        images: token ids of each image: the image token once per feature, and the tokens before and after them.
        inference: stop after the last question and open the turn of :func:`next_speaker`.
        learned_roles: roles whose words are supervised.
        supervise_header: also supervise the text before these words, as recipes that mask whole messages do.

    Returns:
        tokens and labels of equal length, not shifted; labels are -100 where not supervised.

    Raises:
        DataError: if ``inference`` is set for a sample without a user turn, images and places differ in number, or a
            format needs turns in alternation and the sample has others.
        ModelError: if a virtual user speaks and the format has none.
    """
    messages = prompt_messages(sample) if inference else sample.messages
    if template.alternates:
        check_turns(sample, template.name)
    tags = sum(message.content.count(IMAGE_TAG) for message in messages if message.role == "user")
    if tags and tags != len(images):
        raise DataError(f"sample {sample.id} has {len(images)} images but its text has places for {tags}")
    speaker = next_speaker(sample) if inference else None
    messages = with_system(messages, template.default_system, speaker)
    pieces = list(_pieces(template, tokenizer, messages, images, learned_roles, not tags, supervise_header))
    if speaker is not None:
        pieces += _marked(template, tokenizer, template.turn(speaker)[0])
    bos = [tokenizer.special_id(template.bos)] if template.bos else []
    tokens, learned = _encode(tokenizer, pieces)
    labels = [token if flag else IGNORE_INDEX for token, flag in zip(tokens, learned, strict=True)]
    return [*bos, *tokens], [*([IGNORE_INDEX] * len(bos)), *([IGNORE_INDEX] * len(tokens) if inference else labels)]


def question_flags(sample: Sample, write: Callable[..., tuple[list[int], list[int]]]) -> dict[str, list[bool]]:
    """Mark the supervised tokens of a virtual user's questions.

    Args:
        sample: the messages.
        write: returns tokens and labels of the sample for the argument ``learned_roles``.

    Returns:
        ``asked``, one flag per token; nothing for a sample without a virtual user.
    """
    if not any(message.role == VIRTUAL_USER for message in sample.messages):
        return {}
    _, labels = write(learned_roles=(VIRTUAL_USER,))
    return {"asked": [label != IGNORE_INDEX for label in labels]}


def answer_ids(template: ChatTemplate, tokenizer: TextTokenizer, text: str) -> list[int]:
    """Ids of an answer that begins with ``text``, as they follow the assistant's header."""
    *_, last = template.split(template.assistant[0])
    header = "" if last in template.special else last
    ids, before = tokenizer.encode(header + template.answer_prefix + text, first=False), _after(tokenizer, header)
    return ids[_shared(ids, before) :]


def _pieces(
    template: ChatTemplate,
    tokenizer: TextTokenizer,
    messages: Sequence[Message],
    images: Sequence[Sequence[int]],
    learned_roles: Container[str],
    untagged: bool,
    supervise_header: bool,
) -> Iterator[_Piece]:
    blocks = iter(images)
    no_user_turn = not any(message.role == "user" for message in messages)
    system = ""
    for message in messages:
        if message.role == "system" and template.system_end is not None:
            system += message.content.strip() + template.system_end
            continue
        before, after = template.turn(message.role)
        if untagged and no_user_turn and message.role != "system":
            yield from _images(template, blocks)
        header = _marked(template, tokenizer, before)
        learned = message.role in learned_roles
        if system and message.role != "user":  # there is no question that it could stand in
            yield _Piece(system)
            system = ""
        yield from (replace(piece, learned=learned and supervise_header) for piece in header)
        if system:
            yield _Piece(system)
            system = ""
        if untagged and message.role == "user":
            yield from _images(template, blocks)
        if message.role in LEARNED_ROLES:
            yield _Piece(template.answer_prefix + message.content.strip(), learned=learned)
        else:
            yield from _tagged(template, message, blocks)
        end, *rest = _marked(template, tokenizer, after) or [_Piece("")]
        yield _Piece(end.content, learned=learned)
        yield from rest


def _images(template: ChatTemplate, blocks: Iterator[Sequence[int]]) -> Iterator[_Piece]:
    for block in blocks:
        yield from _broken(template, block)
        yield _Piece(template.image_separator)


def _tagged(template: ChatTemplate, message: Message, blocks: Iterator[Sequence[int]]) -> Iterator[_Piece]:
    """A message's text; in a user message each tag becomes an image."""
    text = message.content.strip()
    for i, part in enumerate(text.split(IMAGE_TAG) if message.role == "user" else [text]):
        if i:
            yield from _broken(template, next(blocks))
        yield _Piece(part.strip() if template.image_break else part)


def _broken(template: ChatTemplate, block: Sequence[int]) -> Iterator[_Piece]:
    """An image with the text on both sides of it."""
    yield from (_Piece(template.image_break), _Piece(block), _Piece(template.image_break))


def _marked(template: ChatTemplate, tokenizer: TextTokenizer, text: str) -> list[_Piece]:
    """A text of the template with its special tokens as ids."""
    parts = template.split(text)
    return [_Piece([tokenizer.special_id(part)] if part in template.special else part) for part in parts]


def _encode(tokenizer: TextTokenizer, pieces: Sequence[_Piece]) -> tuple[list[int], list[bool]]:
    """Ids, and whether each is supervised. A token that spans two pieces belongs to the later one."""
    tokens: list[int] = []
    learned: list[bool] = []
    run: list[_Piece] = []
    first = True
    for piece in [*pieces, _Piece([])]:
        if isinstance(piece.content, str):
            run.append(piece)
            continue
        ids, flags = _encode_run(tokenizer, run, first)
        tokens += [*ids, *piece.content]
        learned += [*flags, *([piece.learned] * len(piece.content))]
        run, first = [], False
    return tokens, learned


def _encode_run(tokenizer: TextTokenizer, run: Sequence[_Piece], first: bool) -> tuple[list[int], list[bool]]:
    """Encode the text between two special tokens as one string."""
    parts = [(str(piece.content), piece.learned) for piece in run if piece.content]
    ids = tokenizer.encode("".join(text for text, _ in parts), first=first) if parts else []
    flags: list[bool] = []
    before = ""
    for i, (text, flag) in enumerate(parts):
        before += text
        whole = i == len(parts) - 1
        end = len(ids) if whole else _shared(ids, tokenizer.encode(before, first=first))
        flags += [flag] * (end - len(flags))
    return ids, flags


def _after(tokenizer: TextTokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, first=False) if text else []


def _shared(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the common beginning."""
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))
