"""The record type that every dataset yields and every recipe reads."""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from medtune.data.reports import is_blank, is_missing_report
from medtune.errors import DataError

ROLES = ("system", "user", "assistant")
VIRTUAL_USER = "virtual_user"
"""The role of a question that the model asks itself. No file has it: training and generation make such turns."""
IMAGE_TAG = "<image>"
FIELDS = ("id", "images", "messages", "meta", "weight")


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: ``system``, ``user`` or ``assistant``; in samples that were changed in memory also ``virtual_user``.
        content: the text; ``<image>`` marks the place of an image, in user turns only.
    """

    role: str
    content: str


@dataclass(frozen=True)
class Sample:
    """One conversation about zero or more images.

    Attributes:
        id: unique in its source; logs and errors name it instead of quoting the text. Characters that cannot be printed
            (line breaks, terminal escapes) are replaced by :func:`printable`.
        images: paths relative to the image root, in the order of their tags.
        messages: the turns; an image-report pair is a single assistant turn.
        meta: what a protocol needs in addition to the text (attribute, options, answer).
        weight: how much the sample counts in the training loss, above 0.
    """

    id: str
    images: tuple[str, ...]
    messages: tuple[Message, ...]
    meta: dict[str, Any] = field(default_factory=dict)
    weight: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", printable(self.id))

    @classmethod
    def from_dict(cls, row: Mapping[str, Any], where: str) -> "Sample":
        """Check a decoded row and convert it to a sample.

        Args:
            row: ``{"id", "images", "messages", "meta", "weight"}``; only id and messages are required. Rows in other
                layouts are read by :func:`medtune.data.rows.sample_of`.
            where: file and row, for messages.

        Raises:
            DataError: naming ``where``, the wrong field, and its expected content.
        """
        if not isinstance(row, Mapping):
            raise DataError(f"{where}: a row must be a JSON object, this one is a {type(row).__name__}.")
        _check_fields(row, where)
        where = f"{where} (id {row['id']!r})"
        messages = _messages(row["messages"], where)
        images = _images(row.get("images", []), where)
        _check_tags(messages, images, where)
        _check_answers(messages, where)
        meta = row.get("meta", {})
        if not isinstance(meta, Mapping):
            raise DataError(f"{where}: 'meta' must be an object like {{}}, not a {type(meta).__name__}.")
        weight = _weight(row.get("weight", 1.0), where)
        return cls(id=str(row["id"]), images=images, messages=messages, meta=dict(meta), weight=weight)

    def to_dict(self) -> dict[str, Any]:
        """Return the row as it is written to disk."""
        turns = [{"role": message.role, "content": message.content} for message in self.messages]
        row = {"id": self.id, "images": list(self.images), "messages": turns, "meta": self.meta}
        return row if self.weight == 1.0 else {**row, "weight": self.weight}


def report_sample(id: str, images: tuple[str, ...], report: str) -> Sample:
    """Return an image-report pair: a single assistant turn, because it has no instruction."""
    return Sample(id=id, images=images, messages=(Message("assistant", report),))


def printable(text: str) -> str:
    r"""Escape the characters of an id that cannot be printed, such as line breaks and terminal escapes.

    An id comes from a file and is written to terminals and logs, where ``\n`` would begin a line of its own and
    ``\x1b[`` would be a command of the terminal.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def is_identifier(value: object) -> bool:
    """Return whether a value can be a sample's id: non-blank text or an integer."""
    return (isinstance(value, str) and bool(value.strip())) or (isinstance(value, int) and not isinstance(value, bool))


def _check_fields(row: Mapping[str, Any], where: str) -> None:
    for name in row:
        if name not in FIELDS:
            near = difflib.get_close_matches(str(name), FIELDS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else " Put extra values under 'meta'."
            raise DataError(f"{where}: unknown field {name!r}; a row has {', '.join(FIELDS)}.{hint}")
    for name in ("id", "messages"):
        if name not in row:
            other = " LLaVA's 'conversations' are read too." if name == "messages" else ""
            raise DataError(f"{where}: the field {name!r} is missing; a row has {', '.join(FIELDS)}.{other}")
    if not is_identifier(row["id"]):
        raise DataError(f"{where}: 'id' must be a non-empty string; give every row its own.")


def last_question(sample: Sample) -> str:
    """Return the text of a sample's last user turn, without image tags; empty if there is none."""
    asked = [message.content for message in sample.messages if message.role == "user"]
    return asked[-1].replace(IMAGE_TAG, " ").strip() if asked else ""


def _messages(turns: object, where: str) -> tuple[Message, ...]:
    if not isinstance(turns, list) or not turns:
        raise DataError(f"{where}: 'messages' must be a non-empty list of {{'role', 'content'}}.")
    return tuple(_message(turn, f"{where}, message {number}") for number, turn in enumerate(turns, start=1))


def _message(turn: object, where: str) -> Message:
    if not isinstance(turn, Mapping) or set(turn) != {"role", "content"}:
        raise DataError(f"{where}: a message must have exactly 'role' and 'content'.")
    role, content = turn["role"], turn["content"]
    if role not in ROLES:
        raise DataError(f"{where}: unknown role; use one of {', '.join(ROLES)}.")
    if not isinstance(content, str):
        raise DataError(f"{where}: 'content' must be a string, not a {type(content).__name__}.")
    if role == "assistant" and is_blank(content):
        raise DataError(f"{where}: the report or answer is empty; write it, or remove the row.")
    return Message(role, content)


def _check_answers(messages: tuple[Message, ...], where: str) -> None:
    """Refuse a report that stands for "no report". In an answer to a question "none" and "N/A" are words."""
    if any(message.role == "user" for message in messages):
        return
    if any(is_missing_report(message.content) for message in messages if message.role == "assistant"):
        raise DataError(
            f"{where}: the report or answer is empty, or a mark such as nan, N/A or ___; write it, or remove the row."
        )


def _weight(value: object, where: str) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    try:
        weight = float(value) if number else math.nan  # type: ignore[arg-type]
    except OverflowError:
        weight = math.inf
    if not 0.0 < weight < math.inf:
        raise DataError(
            f"{where}: 'weight' must be a number above 0, for example 2.0; remove a row that must not count."
        )
    return weight


def _images(paths: object, where: str) -> tuple[str, ...]:
    if not isinstance(paths, list) or not all(isinstance(path, str) and path for path in paths):
        raise DataError(f"{where}: 'images' must be a list of paths, for example [\"a/b.png\"] or [].")
    return tuple(paths)


def _check_tags(messages: tuple[Message, ...], images: tuple[str, ...], where: str) -> None:
    """Check that image tags, if there are any, match the images one to one."""
    if any(IMAGE_TAG in message.content for message in messages if message.role != "user"):
        raise DataError(f"{where}: {IMAGE_TAG} stands outside a user message; move it into one.")
    tags = sum(message.content.count(IMAGE_TAG) for message in messages)
    if tags and tags != len(images):
        raise DataError(
            f"{where}: {tags} {IMAGE_TAG} tags for {len(images)} images; write one tag per image, or none at all."
        )
