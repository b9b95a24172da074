"""Messages to and from a chat server: content with images, requests, replies, usage."""

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
    """Settings for sampling tokens; :class:`medtune.generation.engine.sampling.Sampling` implements it."""

    @property
    def temperature(self) -> float:
        """Divides the logits."""
        ...

    @property
    def top_p(self) -> float:
        """Least sum of the probabilities of the kept tokens."""
        ...

    @property
    def top_k(self) -> int:
        """Number of most likely tokens that are kept; 0 keeps all."""
        ...

    @property
    def seed(self) -> int:
        """Seed of one request."""
        ...


@dataclass(frozen=True)
class ChatRequest:
    """One request.

    Attributes:
        id: Id for error messages; the reply has the same id.
        messages: Turns ``{role, content}``; see :func:`content`.
        sampling: Sampling settings; None for greedy decoding (temperature 0).
        max_tokens: Maximum number of tokens of the reply; None uses the server's default.
        extra: Further fields of the body; its field ``extra_headers`` is sent as HTTP headers.
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
        text: The text that the model wrote.
        finish_reason: Why the reply ended: one of :data:`FINISH_REASONS`; empty for any other value.
        prompt_tokens: Number of tokens of the request; 0 if the server does not report it.
        completion_tokens: Number of tokens of the reply; 0 if the server does not report it.
        request_id: The server's id of the request; None if it sends none.
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
    """Totals over the replies of a client.

    Attributes:
        requests: Number of replies.
        prompt_tokens: Number of tokens of the requests as the server counts them, including images.
        completion_tokens: Number of tokens of the replies as the server counts them.
    """

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def plus(self, reply: ChatReply) -> "Usage":
        """Return the totals with one more reply."""
        return Usage(
            self.requests + 1,
            self.prompt_tokens + reply.prompt_tokens,
            self.completion_tokens + reply.completion_tokens,
        )


class NoText(Exception):
    """A well-formed reply without text; the message gives the reason and nothing that the server wrote."""


def content(parts: Sequence[str | Image.Image]) -> str | list[dict[str, Any]]:
    """Return a turn's content: plain text, which every server accepts, or with images a list of parts."""
    if not any(isinstance(part, Image.Image) for part in parts):
        return "\n".join(str(part) for part in parts)
    return [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image_url", "image_url": {"url": data_uri(part)}}
        for part in parts
    ]


def data_uri(image: Image.Image) -> str:
    """Return an image as a ``data:`` URI in PNG, which is lossless.

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
        body: The bytes that the server sent.
        request_id: The server's id of the request.
        name: Our id of the request.

    Raises:
        ValueError: The body is not a chat completion; the message says what is wrong and quotes nothing of the body.
        NoText: It is a chat completion without text.
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
    """Replace lone surrogates, which JSON can contain and UTF-8 cannot encode."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
