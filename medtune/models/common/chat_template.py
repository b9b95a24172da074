"""Chat formats as data, and a sample's messages as tokens in one of them."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from medtune.data.sample import IMAGE_TAG, Message, Sample
from medtune.errors import DataError, ModelError
from medtune.losses.cross_entropy import IGNORE_INDEX
from medtune.models.common.tokenizer import TextTokenizer

Turn = tuple[str, str]


class SampleTooLong(DataError):
    """A sample has more tokens than the transform allows. Nothing is ever cut."""


def prompt_messages(sample: Sample) -> tuple[Message, ...]:
    """The messages up to and with the last user turn: what is shown when an answer is wanted.

    Raises:
        DataError: if there is no user turn.
    """
    last = max((i for i, message in enumerate(sample.messages) if message.role == "user"), default=None)
    if last is None:
        raise DataError(f"sample {sample.id} has no user message, so there is nothing to answer")
    return tuple(sample.messages[: last + 1])


@dataclass(frozen=True)
class ChatTemplate:
    """A chat format.

    Attributes:
        name: for messages.
        special: the special tokens that the other fields spell out; all else in them is text.
        system: what stands before and after a system message.
        user: likewise for a user's.
        assistant: likewise; what follows begins with the special token that ends the turn, which is learned.
        stop: tokens that end an answer.
        pad: the token that fills short rows.
        bos: a token before all, or nothing.
        default_system: system message of samples that have none; an empty one writes no system turn.
        answer_prefix: stands before an answer and belongs to it (Vicuna: a space, which is part of its first token).
        image_separator: stands after each image that no ``<image>`` tag places.

    Raises:
        ModelError: if the assistant's turn does not end with a special token.
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

    def __post_init__(self) -> None:
        if not self.assistant[1].startswith(self.special):
            raise ModelError(f"chat template {self.name}: no special token stands right after an answer")

    def turn(self, role: str) -> Turn:
        """What stands before and after a message of ``role``."""
        return {"system": self.system, "user": self.user, "assistant": self.assistant}[role]

    def split(self, text: str) -> list[str]:
        """A text of this template cut at its special tokens, which are kept."""
        pattern = "|".join(re.escape(token) for token in sorted(self.special, key=len, reverse=True))
        return [part for part in re.split(f"({pattern})", text) if part]


def chatml(
    default_system: str = "", *, end: str = "<|im_end|>\n", bos: str = "", pad: str = "<|endoftext|>"
) -> ChatTemplate:
    """ChatML, as Qwen2.5 writes it; with ``end="<|im_end|>"`` and a ``bos`` as InternVL2 writes it for InternLM2.

    Args:
        default_system: system message of samples that have none.
        end: what follows each message.
        bos: a token before all.
        pad: fills short rows, and ends an answer too.
    """
    return ChatTemplate(
        name="chatml",
        special=("<|im_start|>", "<|im_end|>"),
        system=("<|im_start|>system\n", end),
        user=("<|im_start|>user\n", end),
        assistant=("<|im_start|>assistant\n", end),
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
        stop=("</s>",),
        pad=pad,
        bos="<s>",
        default_system=VICUNA_SYSTEM,
        answer_prefix=" ",
    )


def llama3() -> ChatTemplate:
    """Llama-3's format, without a system message of its own."""
    return ChatTemplate(
        name="llama3",
        special=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        system=("<|start_header_id|>system<|end_header_id|>\n\n", "<|eot_id|>"),
        user=("<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"),
        assistant=("<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>"),
        stop=("<|end_of_text|>", "<|eot_id|>", "<|eom_id|>"),
        pad="<|finetune_right_pad_id|>",
        bos="<|begin_of_text|>",
        image_separator="",
    )


@dataclass(frozen=True)
class _Piece:
    """Text, or ids that stand for themselves; learned or not."""

    content: str | Sequence[int]
    learned: bool = False


def image_places(sample: Sample) -> int:
    """Places for images in a sample: its ``<image>`` tags, or where it has none, one for each of its images."""
    tags = sum(message.content.count(IMAGE_TAG) for message in sample.messages if message.role == "user")
    return tags or len(sample.images)


def lay_out(
    template: ChatTemplate,
    tokenizer: TextTokenizer,
    sample: Sample,
    images: Sequence[Sequence[int]],
    *,
    inference: bool = False,
) -> tuple[list[int], list[int]]:
    """Write a sample's messages in a chat format.

    Images stand where the text says ``<image>``, else at the start of the first user turn, each with the template's
    separator after it. A sample without a user turn gets none: its images then stand before its first turn. Learned
    are the assistant's words and the special token after them. Ids are those of the whole string: text is encoded in
    one piece from one special token or image to the next.

    Args:
        template: the format.
        tokenizer: gives ids.
        sample: its messages.
        images: what stands for each image: its token as often as it has features, with the marks around them.
        inference: stop after the last user turn and open the assistant's.

    Returns:
        tokens and labels, equally long and not shifted; labels are -100 where nothing is learned.

    Raises:
        DataError: if ``inference`` is asked of a sample without a user turn, or images and places differ in number.
    """
    messages = prompt_messages(sample) if inference else sample.messages
    tags = sum(message.content.count(IMAGE_TAG) for message in messages if message.role == "user")
    if tags and tags != len(images):
        raise DataError(f"sample {sample.id} has {len(images)} images but its text has places for {tags}")
    if template.default_system and not any(message.role == "system" for message in messages):
        messages = (Message("system", template.default_system), *messages)
    pieces = list(_pieces(template, tokenizer, messages, images, loose=not tags))
    if inference:
        pieces += _marked(template, tokenizer, template.assistant[0])
    bos = [tokenizer.special_id(template.bos)] if template.bos else []
    tokens, learned = _encode(tokenizer, pieces)
    labels = [token if flag else IGNORE_INDEX for token, flag in zip(tokens, learned, strict=True)]
    return [*bos, *tokens], [*([IGNORE_INDEX] * len(bos)), *([IGNORE_INDEX] * len(tokens) if inference else labels)]


def answer_ids(template: ChatTemplate, tokenizer: TextTokenizer, text: str) -> list[int]:
    """Ids with which an answer begins that reads ``text``: those after the assistant's header."""
    *_, last = template.split(template.assistant[0])
    header = "" if last in template.special else last
    ids, before = tokenizer.encode(header + template.answer_prefix + text, first=False), _after(tokenizer, header)
    return ids[_shared(ids, before) :]


def _pieces(
    template: ChatTemplate,
    tokenizer: TextTokenizer,
    messages: Sequence[Message],
    images: Sequence[Sequence[int]],
    *,
    loose: bool,
) -> Iterator[_Piece]:
    blocks = iter(images)
    anywhere = not any(message.role == "user" for message in messages)
    for message in messages:
        before, after = template.turn(message.role)
        if loose and anywhere and message.role != "system":
            yield from _images(template, blocks)
        yield from _marked(template, tokenizer, before)
        if loose and message.role == "user":
            yield from _images(template, blocks)
        if message.role == "assistant":
            yield _Piece(template.answer_prefix + message.content.strip(), learned=True)
        else:
            yield from _tagged(message, blocks)
        end, *rest = _marked(template, tokenizer, after) or [_Piece("")]
        yield _Piece(end.content, learned=message.role == "assistant")
        yield from rest


def _images(template: ChatTemplate, blocks: Iterator[Sequence[int]]) -> Iterator[_Piece]:
    for block in blocks:
        yield _Piece(block)
        yield _Piece(template.image_separator)


def _tagged(message: Message, blocks: Iterator[Sequence[int]]) -> Iterator[_Piece]:
    """A message's text, an image at each tag of a user's."""
    text = message.content.strip()
    for i, part in enumerate(text.split(IMAGE_TAG) if message.role == "user" else [text]):
        if i:
            yield _Piece(next(blocks))
        yield _Piece(part)


def _marked(template: ChatTemplate, tokenizer: TextTokenizer, text: str) -> list[_Piece]:
    """A text of the template, its special tokens as ids."""
    parts = template.split(text)
    return [_Piece([tokenizer.special_id(part)] if part in template.special else part) for part in parts]


def _encode(tokenizer: TextTokenizer, pieces: Sequence[_Piece]) -> tuple[list[int], list[bool]]:
    """Ids, and which of them are learned. A token that lies across two pieces belongs to the later."""
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
    """Text between two special tokens as one string."""
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
