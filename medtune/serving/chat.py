"""The body of a chat request: which fields it may have, and what is asked of the model."""

import json
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from medtune.data.sample import IMAGE_TAG, Message
from medtune.errors import ConfigError
from medtune.generation.engine.sampling import Sampling
from medtune.serving.errors import ApiError, refused
from medtune.serving.images import decode_uri
from medtune.serving.limits import Limits

MOST_STOPS, LONGEST_STOP = 4, 256
ImagePlace = Literal["first", "as_sent"]


def _whole_characters(text: str) -> str:
    """Refuse half a character, which JSON can hold and no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("the text holds half a character (a lone surrogate)") from None
    return text


_Zero = Annotated[float, Field(ge=0, le=0)]
_Words = Annotated[str, AfterValidator(_whole_characters)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)


class _Text(_Strict):
    type: Literal["text"]
    text: _Words


class _ImageUrl(_Strict):
    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class _Image(_Strict):
    type: Literal["image_url"]
    image_url: _ImageUrl


_Part = Annotated[_Text | _Image, Field(discriminator="type")]


class _Turn(_Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: _Words | list[_Part]


class _TextFormat(_Strict):
    type: Literal["text"]


class _StreamOptions(_Strict):
    include_usage: bool = False


class ChatBody(_Strict):
    """A request's fields. What is not here is refused by name; ``null`` is as if the field were absent."""

    model: _Words
    messages: Annotated[list[_Turn], Field(min_length=1, max_length=1000)]
    temperature: Annotated[float, Field(ge=0, le=5, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=10**6)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: _Words | Annotated[list[_Words], Field(max_length=MOST_STOPS)] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    # Accepted with the one value that changes nothing.
    n: Literal[1] | None = None
    logprobs: Literal[False] | None = None
    frequency_penalty: _Zero | None = None
    presence_penalty: _Zero | None = None
    response_format: _TextFormat | None = None
    store: Literal[False] | None = None
    user: str | None = None


@dataclass(frozen=True)
class ChatCall:
    """A checked request.

    Attributes:
        model: The name that the client gave.
        messages: The turns; ``<image>`` marks images unless they stand at the beginning of the first user turn.
        images: The files of the images, in order.
        question: Text of the last user turn, which decides the route.
        max_new_tokens: Maximum number of tokens.
        sampling: None is greedy.
        seeded: Whether the client gave a seed, so that the same request must get the same answer.
        stops: Texts that end the answer.
        stream: Whether the answer is sent piece by piece.
        include_usage: Whether the stream ends with the usage.
    """

    model: str
    messages: tuple[Message, ...]
    images: tuple[bytes, ...]
    question: str
    max_new_tokens: int
    sampling: Sampling | None
    seeded: bool
    stops: tuple[str, ...]
    stream: bool
    include_usage: bool


@dataclass(frozen=True)
class Defaults:
    """What the server decides where a request says nothing.

    Attributes:
        max_new_tokens: Maximum number of tokens.
        sampling: None is greedy.
        image_place: ``first`` puts the images of a turn before its text, as in training; ``as_sent`` keeps the order.
        separator: The text between an image and what follows it.
        fetch: Fetches images from addresses; None refuses addresses.
    """

    max_new_tokens: int = 256
    sampling: Sampling | None = None
    image_place: ImagePlace = "first"
    separator: str = "\n"
    fetch: Callable[[str, str], bytes] | None = None


def read_call(raw: bytes, limits: Limits, defaults: Defaults) -> ChatCall:
    """Check a request's body.

    Raises:
        ApiError: Naming the field that is wrong, never its content.
    """
    body = _checked(raw)
    if body.messages[-1].role != "user":
        raise refused("messages", "the last message must be of the role user; the model answers it")
    images: list[bytes] = []
    places = [_images(turn, f"messages[{i}]", images, limits, defaults) for i, turn in enumerate(body.messages)]
    question = _words(body.messages[-1])
    if not question.strip():
        raise refused("messages", "the last message has no text; write the question")
    wanted = body.max_completion_tokens if body.max_tokens is None else body.max_tokens
    if wanted is not None and wanted > limits.max_tokens:
        name = "max_completion_tokens" if body.max_tokens is None else "max_tokens"
        raise refused(name, f"{name} is {wanted}; this server allows {limits.max_tokens}")
    return ChatCall(
        model=body.model,
        messages=_messages(body.messages, places, defaults),
        images=tuple(images),
        question=question,
        max_new_tokens=min(defaults.max_new_tokens, limits.max_tokens) if wanted is None else wanted,
        sampling=_sampling(body, defaults.sampling),
        seeded=body.seed is not None,
        stops=_stops(body.stop),
        stream=bool(body.stream),
        include_usage=body.stream_options is not None and body.stream_options.include_usage,
    )


def _checked(raw: bytes) -> ChatBody:
    try:
        values = json.loads(raw)
    except (ValueError, RecursionError):
        raise ApiError(400, "the body is not JSON", code="invalid_json") from None
    if not isinstance(values, dict):
        raise ApiError(400, "the body must be a JSON object with model and messages", code="invalid_json")
    given = {name: value for name, value in values.items() if value is not None}
    if not given.get("tools", True):
        del given["tools"]
    try:
        return ChatBody.model_validate(given)
    except ValidationError as error:
        raise _told(error) from None


def _told(error: ValidationError) -> ApiError:
    # Of a union every member tells an error; the one that is found deepest is that of the member that was meant.
    first = max(error.errors(include_input=False, include_context=False, include_url=False), key=_depth)
    param, before = "", ""
    for step in first["loc"]:
        if isinstance(step, int):
            param += f"[{step}]"
        elif step.isidentifier() and len(step) <= 40 and step not in ("str", before):
            param += f".{step}" if param else step
        before = str(step)
    top = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "extra_forbidden":
        return refused(param, f"the parameter {param} is not supported; leave it out", "unsupported_parameter")
    if first["type"] == "missing":
        return refused(param, f"the parameter {param} is missing", "missing_required_parameter")
    if top in ("n", "logprobs", "frequency_penalty", "presence_penalty", "response_format", "store"):
        return refused(top, f"this value of {top} is not supported; leave it out", "unsupported_parameter")
    return refused(param, f"{param}: {first['msg'].removeprefix('Value error, ')}", "invalid_value")


def _depth(error: Any) -> int:
    return len(error["loc"])


def _images(turn: _Turn, where: str, images: list[bytes], limits: Limits, defaults: Defaults) -> int:
    """Add the images of a turn to the list; return their number."""
    if isinstance(turn.content, str):
        return 0
    found = 0
    for number, part in enumerate(turn.content):
        if isinstance(part, _Text):
            continue
        if turn.role != "user":
            raise refused("messages", f"{where}: only a user message can hold images")
        if len(images) >= limits.images:
            raise refused("messages", f"the request has more images than this server allows ({limits.images})")
        images.append(decode_uri(part.image_url.url, f"{where}.content[{number}].image_url.url", defaults.fetch))
        found += 1
    return found


def _words(turn: _Turn) -> str:
    """The text of a turn, without images."""
    parts = [turn.content] if isinstance(turn.content, str) else [p.text for p in turn.content if isinstance(p, _Text)]
    return "\n".join(parts)


def _messages(turns: Sequence[_Turn], places: Sequence[int], defaults: Defaults) -> tuple[Message, ...]:
    """Return the turns; images are marked where a model that was trained on untagged images would not put them."""
    first = next((i for i, turn in enumerate(turns) if turn.role == "user"), 0)
    tagged = any(count for i, count in enumerate(places) if i != first) or defaults.image_place == "as_sent"
    made = []
    for i, turn in enumerate(turns):
        role = "system" if turn.role == "developer" else turn.role
        text = _words(turn)
        if role == "user" and IMAGE_TAG in text:
            raise refused("messages", f"messages[{i}] holds {IMAGE_TAG} in its text; send images as image_url parts")
        if role == "assistant" and not text.strip():
            raise refused("messages", f"messages[{i}]: a message of the assistant has no text")
        if tagged and places[i]:
            text = _with_tags(turn, defaults)
        made.append(Message(role, text))
    return tuple(made)


def _with_tags(turn: _Turn, defaults: Defaults) -> str:
    tag = IMAGE_TAG + defaults.separator
    if defaults.image_place == "first":
        count = sum(isinstance(part, _Image) for part in turn.content)
        return tag * count + _words(turn)
    pieces: list[str] = []
    for part in turn.content:
        assert not isinstance(part, str)
        if isinstance(part, _Text) and pieces and pieces[-1] != tag:
            pieces.append("\n")
        pieces.append(part.text if isinstance(part, _Text) else tag)
    return "".join(pieces)


def _sampling(body: ChatBody, default: Sampling | None) -> Sampling | None:
    """Return how tokens are drawn; without a temperature the server's own setting holds."""
    base = default or Sampling()
    temperature = body.temperature if body.temperature is not None else (default.temperature if default else 0.0)
    top_k = base.top_k if body.top_k is None else max(body.top_k, 0)  # vLLM writes -1 for all tokens
    if temperature == 0 or top_k == 1:
        return None
    top_p = base.top_p if body.top_p is None else body.top_p
    seed = secrets.randbits(63) if body.seed is None else body.seed
    try:
        return Sampling(temperature, top_p, top_k, seed)
    except ConfigError as error:
        raise refused("temperature", str(error)) from None


def _stops(given: Any) -> tuple[str, ...]:
    stops = tuple([given] if isinstance(given, str) else given or ())
    if any(not 0 < len(stop) <= LONGEST_STOP for stop in stops):
        raise refused("stop", f"a stop must have 1 to {LONGEST_STOP} characters")
    return stops
