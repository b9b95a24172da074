"""Messages to and from a chat server: content with images, requests, replies, usage."""

import base64
import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from PIL import Image

from medtune.errors import DataError

FINISH_REASONS = ("stop", "length", "content_filter", "tool_calls", "function_call")
PNG_LEVEL = 1


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
        messages: Turns ``{role, content}``; :func:`content` makes the content of texts and images.
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


@dataclass(frozen=True)
class SamplingAt:
    """Sampling settings of a request that another model answers; see :class:`SamplingOptions`."""

    temperature: float
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0


class NoText(Exception):
    """A well-formed reply without text; the message gives the reason and nothing that the server wrote.

    Attributes:
        reply: The reply with an empty text.
    """

    def __init__(self, message: str, reply: ChatReply) -> None:
        super().__init__(message)
        self.reply = reply


def content(parts: Sequence[str | Image.Image]) -> str | list[dict[str, Any]]:
    """Return a turn's content: plain text, which every server accepts, or with images a list of parts.

    An image stays an image (``{"type": "image", "image": ...}``) until :func:`encoded` makes a text of it, so that a
    request whose reply is in a cache costs no encoding.
    """
    if not any(isinstance(part, Image.Image) for part in parts):
        return "\n".join(str(part) for part in parts)
    return [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part} for part in parts
    ]


def encoded(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return turns as they are sent: each image as a ``data:`` URI.

    Raises:
        DataError: An image cannot be sent as PNG.
    """
    return _with_images(messages, lambda image: {"type": "image_url", "image_url": {"url": data_uri(image)}})


def digested(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return turns as plain values in which each image is the SHA-256 of its mode, size and pixels."""
    return _with_images(messages, lambda image: {"type": "image", "sha256": pixels_sha256(image)})


def shown(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return turns for a reader's eyes: each image as one line that says its size, and that it would be sent as PNG."""

    def described(image: Image.Image) -> dict[str, Any]:
        what = f"{image.width} x {image.height} {image.mode}, sha256 of the pixels {pixels_sha256(image)[:12]}"
        return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,<{what}>"}}

    return _with_images(messages, described)


def images_in(messages: Sequence[dict[str, Any]]) -> int:
    """Return the number of images in some turns."""
    parts = [part for turn in messages if isinstance(turn["content"], list) for part in turn["content"]]
    return sum(part.get("type") in ("image", "image_url") for part in parts)


def pixels_sha256(image: Image.Image) -> str:
    """Return the SHA-256 of an image's mode, size and pixels, which does not depend on how a file compresses them."""
    digest = hashlib.sha256(f"{image.mode} {image.width} {image.height} ".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


def _with_images(
    messages: Sequence[dict[str, Any]], convert: Callable[[Image.Image], dict[str, Any]]
) -> list[dict[str, Any]]:
    def part_of(part: Any) -> Any:
        image = part.get("image") if isinstance(part, dict) else None
        return convert(image) if isinstance(image, Image.Image) else part

    return [
        {**turn, "content": [part_of(part) for part in turn["content"]]} if isinstance(turn["content"], list) else turn
        for turn in messages
    ]


def data_uri(image: Image.Image) -> str:
    """Return an image as a ``data:`` URI in PNG, lossless and packed quickly, a fifth larger in a third of the time.

    Raises:
        DataError: PNG cannot hold the image's mode without loss.
    """
    buffer = io.BytesIO()
    try:
        image.save(buffer, format="PNG", compress_level=PNG_LEVEL)
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
    text, usage = message.get("content"), value.get("usage")
    prompt, completion = (_count(usage, count) for count in ("prompt_tokens", "completion_tokens"))
    if text is None:
        reply = ChatReply("", reason, prompt, completion, request_id, name)
        raise NoText(f"a reply without a text (finish_reason {reason or 'unknown'})", reply)
    if not isinstance(text, str):
        raise ValueError(f"the content of the reply is a {type(text).__name__}, not a text")
    return ChatReply(_writable(text), reason, prompt, completion, request_id, name)


def _count(usage: Any, name: str) -> int:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _writable(text: str) -> str:
    """Replace lone surrogates, which JSON can contain and UTF-8 cannot encode."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
