"""What is said to a chat server and what it answers: content with images, requests, replies, usage."""

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from PIL import Image

from medtune.errors import DataError

FINISH_REASONS = ("stop", "length", "content_filter", "tool_calls", "function_call")


class SamplingOptions(Protocol):
    """How tokens are drawn; :class:`medtune.generation.engine.sampling.Sampling` is one."""

    @property
    def temperature(self) -> float:
        """Divides the logits."""
        ...

    @property
    def top_p(self) -> float:
        """Probability that the kept tokens reach together."""
        ...

    @property
    def top_k(self) -> int:
        """Number of likeliest tokens that are kept; 0 keeps all."""
        ...

    @property
    def seed(self) -> int:
        """The randomness of one request."""
        ...


@dataclass(frozen=True)
class ChatRequest:
    """One request.

    Attributes:
        id: Name in messages of errors; the reply carries it.
        messages: Turns ``{role, content}``; see :func:`content`.
        sampling: None for the likeliest tokens (temperature 0).
        max_tokens: Longest reply; None leaves it to the server.
        extra: Further fields of the body; ``extra_headers`` in it are sent as HTTP headers.
    """

    id: str
    messages: Sequence[dict[str, Any]]
    sampling: SamplingOptions | None = None
    max_tokens: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ChatReply:
    """One reply.

    Attributes:
        text: What the model wrote.
        finish_reason: Why it ended: one of :data:`FINISH_REASONS`, empty for any other word of the server.
        prompt_tokens: Tokens of the request, 0 where the server does not count.
        completion_tokens: Tokens of the reply, 0 likewise.
        request_id: The server's name of the request; None where it gives none.
        id: Id of the request.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    request_id: str | None = None
    id: str = ""


@dataclass(frozen=True)
class Usage:
    """What a client's replies cost together.

    Attributes:
        requests: Replies.
        prompt_tokens: As the server counts them, images included.
        completion_tokens: Likewise.
    """

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def plus(self, reply: ChatReply) -> "Usage":
        """The usage with one more reply."""
        return Usage(
            self.requests + 1,
            self.prompt_tokens + reply.prompt_tokens,
            self.completion_tokens + reply.completion_tokens,
        )


class NoText(Exception):
    """A reply that is well-formed and holds no text; the message says why in our words."""


def content(parts: Sequence[str | Image.Image]) -> str | list[dict[str, Any]]:
    """A turn's content: texts alone stay plain text, which every server takes; with images it is a list of parts."""
    if not any(isinstance(part, Image.Image) for part in parts):
        return "\n".join(str(part) for part in parts)
    return [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image_url", "image_url": {"url": data_uri(part)}}
        for part in parts
    ]


def data_uri(image: Image.Image) -> str:
    """An image as a ``data:`` URI in PNG: what arrives is what was decoded, to the bit.

    Raises:
        DataError: PNG cannot hold the image's mode without loss.
    """
    buffer = io.BytesIO()
    try:
        image.save(buffer, format="PNG")
    except OSError as error:
        raise DataError(f"an image of mode {image.mode} cannot be sent as PNG; convert it to RGB first") from error
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def read_reply(body: bytes, request_id: str | None, name: str) -> ChatReply:
    """Check the body of a chat completion.

    Args:
        body: As it came.
        request_id: For the reply.
        name: Id of the request.

    Raises:
        ValueError: The body is no chat completion; the message says what is wrong, in our words.
        NoText: It is one without a text.
    """
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise ValueError("what came is not JSON") from None
    choices = value.get("choices") if isinstance(value, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        raise ValueError("the reply has no choices")
    message, reason = choice.get("message"), choice.get("finish_reason")
    reason = reason if reason in FINISH_REASONS else ""
    if not isinstance(message, dict):
        raise ValueError("the reply has no message")
    text = message.get("content")
    if text is None:
        raise NoText(f"a reply without a text (finish_reason {reason or 'unknown'})")
    if not isinstance(text, str):
        raise ValueError(f"the content of the reply is a {type(text).__name__}, not a text")
    usage = value.get("usage")
    prompt, completion = (_count(usage, name) for name in ("prompt_tokens", "completion_tokens"))
    return ChatReply(_writable(text), reason, prompt, completion, request_id, name)


def _count(usage: Any, name: str) -> int:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _writable(text: str) -> str:
    """The text with half surrogates replaced, which JSON can hold and UTF-8 cannot."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
