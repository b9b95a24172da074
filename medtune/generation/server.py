"""Answers from any server that speaks OpenAI's chat API: vLLM, llama.cpp, SGLang, a hospital's gateway.

Needs the extra ``judges`` (the client ``openai``). Nothing is sent anywhere but to the ``base_url`` of the config.
"""

import base64
import io
import os
from collections import deque
from collections.abc import Container, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, ClassVar
from urllib.parse import urlsplit

from PIL import Image

from medtune.config import nearest
from medtune.errors import ConfigError, DataError, ModelError
from medtune.generation.backend import AnswerSettings
from medtune.generation.chat import Part, chat_turns
from medtune.generation.requests import Generation, Request

# Requests beyond those in flight that may wait for a slow one before them, per connection.
AHEAD = 4
NO_KEY = "none"


@dataclass(frozen=True)
class OpenAIServer:
    """A model behind an OpenAI-compatible server, asked greedily.

    Attributes:
        base_url: Address up to and with ``/v1``; there is no default.
        model: Name under which the server offers the model.
        api_key_env: Environment variable that holds the key; null for servers that want none.
        concurrency: Requests in flight.
        timeout: Seconds until an attempt counts as failed.
        max_retries: Further attempts after a failure that may pass (no connection, timeout, 408, 409, 429, 5xx), with
            growing pauses.
        options: Further fields of the request's body, for example ``{chat_template_kwargs: {enable_thinking: false}}``.
    """

    remote: ClassVar[bool] = True
    base_url: str
    model: str
    api_key_env: str | None = None
    concurrency: int = 8
    timeout: float = 120.0
    max_retries: int = 6
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        address = urlsplit(self.base_url or "")
        if address.scheme not in ("http", "https") or not address.hostname:
            raise ConfigError("backend.base_url must be the address of a server, for example http://localhost:8000/v1")
        if address.username or address.password or address.query:
            raise ConfigError("backend.base_url must hold no password or query; name a variable under api_key_env")
        if not self.model:
            raise ConfigError("backend.model must be the name under which the server offers the model")
        if self.concurrency < 1 or self.max_retries < 0 or not self.timeout > 0:
            raise ConfigError("backend: concurrency and timeout must be positive, max_retries not negative")

    def identity(self) -> dict[str, Any]:
        """The model's name and the options: where it is served, and how fast, decides no answer."""
        return {"model": self.model, "options": self.options}

    def open(self, settings: AnswerSettings) -> "ServerAnswers":
        """Reach the server and check that it offers the model.

        Raises:
            ConfigError: If the client is not installed, the key is not set, nobody answers at the address, the key is
                refused, or the model is not offered.
        """
        try:
            import openai
        except ImportError:
            raise ConfigError("a server needs the openai client: pip install 'medtune[judges]'") from None
        client = openai.OpenAI(
            base_url=self.base_url,
            api_key=self._key(),
            timeout=self.timeout,
            max_retries=self.max_retries,
            # Patients' images go to the address of the config, not to one that it forwards to.
            http_client=openai.DefaultHttpxClient(follow_redirects=False),
        )
        answers = ServerAnswers(self, settings, client, openai)
        answers.check()
        return answers

    def _key(self) -> str:
        if self.api_key_env is None:
            return NO_KEY
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise ConfigError(f"the environment variable {self.api_key_env} (backend.api_key_env) holds no key; set it")
        return key


class ServerAnswers:
    """Answers of one server, in the order of the requests.

    Args:
        server: What to reach.
        settings: How to answer.
        client: An ``openai.OpenAI``.
        api: The module ``openai``, for its errors.
    """

    def __init__(self, server: OpenAIServer, settings: AnswerSettings, client: Any, api: Any) -> None:
        self.server, self.settings, self._client, self._api = server, settings, client, api
        self.images_encoded = 0

    def check(self) -> None:
        """Ask which models there are; a server that keeps no list is asked the questions at once."""
        try:
            served = [model.id for model in self._client.models.list()]
        except self._api.NotFoundError:
            return
        except self._api.OpenAIError as error:
            raise self._explain(error, "the list of models") from None
        except (AttributeError, TypeError, ValueError) as error:  # how the client meets a page that is no list
            raise ConfigError(
                f"{self.server.base_url} gives no list of models; is it the address of the API, with /v1?"
            ) from error
        if served and self.server.model not in served:
            raise ConfigError(
                f"{self.server.base_url} does not offer the model {self.server.model!r}; "
                f"{nearest(self.server.model, served)}"
            )

    def batches(self, requests: Iterable[Request], done: Container[str] = frozenset()) -> Iterator[list[Generation]]:
        """Yield one answer at a time, ``concurrency`` requests being in flight.

        Raises:
            ConfigError: If key or model are refused.
            ModelError: If the server stays away for all retries.
            DataError: For a request that cannot be used, unless the settings skip those.
        """
        pending: deque[tuple[Request, Future[Generation]]] = deque()
        pool = ThreadPoolExecutor(self.server.concurrency, thread_name_prefix="ask")
        try:
            for request in requests:
                if request.id in done:
                    continue
                pending.append((request, pool.submit(self._ask, request)))
                if len(pending) > AHEAD * self.server.concurrency:
                    yield from self._take(*pending.popleft())
            while pending:
                yield from self._take(*pending.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def _take(self, request: Request, future: Future[Generation]) -> Iterator[list[Generation]]:
        try:
            answer = future.result()
        except DataError as error:
            self.settings.refuse(request, error)
            return
        self.images_encoded += len(request.sample.images)
        yield [answer]

    def _ask(self, request: Request) -> Generation:
        turns = chat_turns(request.sample, request.source.open_images(request.sample))
        messages = [{"role": turn.role, "content": _content(turn.role, turn.parts)} for turn in turns]
        try:
            reply = self._client.chat.completions.create(
                model=self.server.model,
                messages=messages,
                temperature=0,
                max_tokens=self.settings.bound(request),
                extra_body=self.server.options or None,
            )
        except self._api.OpenAIError as error:
            raise self._explain(error, f"request {request.id!r}") from None
        except ValueError:  # not JSON
            reply = None
        if not getattr(reply, "choices", None):
            raise ModelError(f"{self.server.base_url} gave no answer to request {request.id!r}; see the server's log")
        choice = reply.choices[0]
        tokens = reply.usage.completion_tokens if reply.usage else 0
        return Generation(request.id, choice.message.content or "", tokens, choice.finish_reason == "stop")

    def _explain(self, error: Exception, what: str) -> ConfigError | DataError | ModelError:
        """Our error for one of the client's. The server's words are left out: they may quote the prompt."""
        api, url = self._api, self.server.base_url
        status = getattr(error, "status_code", None)
        if isinstance(error, api.AuthenticationError | api.PermissionDeniedError):
            held = f"of {self.server.api_key_env}" if self.server.api_key_env else "(none: set backend.api_key_env)"
            return ConfigError(f"{url} refused the key {held} with status {status}")
        if isinstance(error, api.NotFoundError):
            return ConfigError(f"{url} has no model {self.server.model!r} or no chat completions (status 404)")
        if status is not None and 300 <= status < 400:
            return ConfigError(f"{url} forwards to another address (status {status}), which is not followed; give that")
        if isinstance(error, api.APIStatusError) and status is not None and status < 500 and status not in (408, 429):
            # Type and code are words of the API such as `context_length_exceeded`; anything longer is not.
            words = [str(word) for word in (error.type, error.code) if word and len(str(word)) <= 40]
            reason = f" ({', '.join(words)})" if words else ""
            return DataError(f"{what}: {url} refused it with status {status}{reason}; see the server's log")
        if isinstance(error, api.APIConnectionError) and not isinstance(error, api.APITimeoutError):
            return ConfigError(f"{url} cannot be reached ({what}); is the server running, and the address right?")
        kind = f"status {status}, its log says why" if status else type(error).__name__
        attempts = f"{self.server.max_retries + 1} attempts of {self.server.timeout:g} s"
        return ModelError(f"{url} did not answer {what} in {attempts} ({kind}); the same command goes on")


def _content(role: str, parts: list[Part]) -> str | list[dict[str, Any]]:
    """A turn in the API's words; turns without pictures stay plain text, which every server takes."""
    if not any(isinstance(part, Image.Image) for part in parts):
        return "\n".join(str(part) for part in parts)
    return [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image_url", "image_url": {"url": data_uri(part)}}
        for part in parts
    ]


def data_uri(image: Image.Image) -> str:
    """A picture as a ``data:`` address, in PNG: what arrives is what was decoded, to the bit."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
