"""Answers from any server with OpenAI's chat API: vLLM, llama.cpp, SGLang, a hospital's gateway.

A thin backend on :class:`medtune.clients.openai.ChatClient`, which needs the extra ``judges``.
"""

from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from medtune.clients.concurrency import in_order
from medtune.clients.messages import Usage, content
from medtune.clients.openai import ChatClient, Endpoint
from medtune.errors import ConfigError, DataError
from medtune.generation.backends.base import AnswerSettings, for_one_request
from medtune.generation.chat import chat_turns
from medtune.generation.requests import Generation, Request


@dataclass(frozen=True)
class OpenAIServer:
    """A model behind an OpenAI-compatible server.

    Attributes:
        base_url: Address up to and with ``/v1``; there is no default.
        model: Name under which the server offers the model.
        api_key_env: Environment variable that holds the key; null for servers that need no key.
        concurrency: Number of requests in flight.
        timeout: Seconds until an attempt counts as failed.
        max_retries: Number of further attempts after a temporary failure (no connection, timeout, 408, 409, 429, 5xx).
            The pauses between them grow, unless the server asks for a certain pause.
        options: Further fields of the request's body, for example ``{chat_template_kwargs: {enable_thinking: false}}``;
            ``extra_headers`` in it are sent as HTTP headers.
    """

    remote: ClassVar[bool] = True
    scores: ClassVar[bool] = False
    base_url: str
    model: str
    api_key_env: str | None = None
    concurrency: int = 8
    timeout: float = 120.0
    max_retries: int = 6
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._endpoint()
        if self.concurrency < 1:
            raise ConfigError("backend: concurrency must be positive")
        headers = self.options.get("extra_headers", {})
        if not isinstance(headers, dict) or not all(isinstance(value, str) for value in headers.values()):
            raise ConfigError("backend.options.extra_headers must be names and texts")

    def _endpoint(self) -> Endpoint:
        return Endpoint(self.base_url, self.model, self.api_key_env, self.timeout, self.max_retries)

    def identity(self) -> dict[str, Any]:
        """Return the model's name and the options; the server's address does not change answers."""
        return {"model": self.model, "options": self.options}

    def open(self, settings: AnswerSettings) -> "ServerAnswers":
        """Connect to the server and check that it offers the model.

        Raises:
            ConfigError: If the client is not installed, the key is not set, no server answers at the address, the key
                is rejected, or the model is not offered.
        """
        client = ChatClient(self._endpoint())
        client.check()
        return ServerAnswers(self, settings, client)


class ServerAnswers:
    """Answers of one server, in the order of the requests.

    Args:
        server: Options and concurrency.
        settings: How to answer.
        client: The client of the server.
    """

    def __init__(self, server: OpenAIServer, settings: AnswerSettings, client: ChatClient) -> None:
        self.server, self.settings, self.client = server, settings, client
        self.images_encoded = 0

    @property
    def usage(self) -> Usage:
        """Requests and tokens of the answers so far."""
        return self.client.usage

    def batches(self, requests: Iterable[Request], done: Container[str] = frozenset()) -> Iterator[list[Generation]]:
        """Yield one answer at a time, with ``concurrency`` requests in flight.

        Raises:
            ConfigError: If the key or the model is rejected.
            ModelError: If all attempts to reach the server fail.
            DataError: If a request cannot be used and the settings do not skip such requests.
        """
        waiting = (request for request in requests if request.id not in done)
        for request, future in in_order(self._ask, waiting, self.server.concurrency):
            try:
                answer = future.result()
            except DataError as error:
                self.settings.refuse(request, error)
                continue
            self.images_encoded += len(request.sample.images)
            yield [answer]

    def _ask(self, request: Request) -> Generation:
        turns = chat_turns(request.sample, request.source.open_images(request.sample))
        sampling = self.settings.sampling_of(request)
        reply = self.client.complete(
            [{"role": turn.role, "content": content(turn.parts)} for turn in turns],
            None if sampling is None else for_one_request(sampling, request.id),
            self.settings.bound(request),
            self.server.options,
            id=request.id,
        )
        return Generation(request.id, reply.text, reply.completion_tokens, reply.finish_reason == "stop")
