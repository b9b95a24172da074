"""A client of any server with OpenAI's chat API: vLLM, SGLang, llama.cpp, a hospital's gateway.

It wraps the package ``openai`` (extra ``judges``), which retries temporary failures and respects ``Retry-After``.
Requests go only to ``base_url``: redirects are not followed. The only environment variable that is
read is the one with the key. Errors contain a status and a request id, never the server's message.
"""

import json
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

from medtune.clients.concurrency import in_order
from medtune.clients.errors import (
    RequestRefusedError,
    ServerFailedError,
    ServerSetupError,
    described,
    shown_request_id,
)
from medtune.clients.messages import ChatReply, ChatRequest, NoText, SamplingOptions, Usage, read_reply
from medtune.config import nearest
from medtune.errors import ConfigError, DataError, MedtuneError

NO_KEY = "none"
# A server's text is shown only if it can be the name of a model.
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/+-]{0,99}")
# Names of httpx's errors for a connection that was established and then broke.
BROKEN_OFF = ("RemoteProtocolError", "ReadError", "WriteError", "CloseError", "DecodingError")


@dataclass(frozen=True)
class Endpoint:
    """Address of a served model, with timeout and number of retries.

    Attributes:
        base_url: Address up to and with ``/v1``.
        model: Name under which the server offers the model.
        api_key_env: Environment variable that holds the key; None for servers that need no key.
        timeout: Seconds until an attempt counts as failed.
        max_retries: Number of further attempts after a temporary failure (no connection, timeout, 408, 409, 429, 5xx).
            The pauses between them grow, unless the server asks for a certain pause.
        key: Config key of these values, for error messages.

    Raises:
        ConfigError: A value is invalid.
    """

    base_url: str
    model: str
    api_key_env: str | None = None
    timeout: float = 120.0
    max_retries: int = 6
    key: str = "backend"

    def __post_init__(self) -> None:
        try:
            address = urlsplit(self.base_url or "")
            usable = address.scheme in ("http", "https") and bool(address.hostname) and address.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise ConfigError(
                f"{self.key}.base_url must be the address of a server, for example http://localhost:8000/v1"
            )
        if address.username or address.password or address.query:
            raise ConfigError(f"{self.key}.base_url must hold no password or query; name a variable under api_key_env")
        if not self.model:
            raise ConfigError(f"{self.key}.model must be the name under which the server offers the model")
        if self.max_retries < 0 or not self.timeout > 0:
            raise ConfigError(f"{self.key}: timeout must be positive, max_retries not negative")

    def read_key(self) -> str:
        """Return the key from the environment.

        Raises:
            ConfigError: The variable is not set, or its value cannot be sent in an HTTP header.
        """
        if self.api_key_env is None:
            return NO_KEY
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise ConfigError(
                f"the environment variable {self.api_key_env} ({self.key}.api_key_env) holds no key; set it"
            )
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise ConfigError(f"the environment variable {self.api_key_env} holds characters that no key has; check it")
        return key


class ChatClient:
    """Sends requests to one model of one server; safe to call from several threads.

    Args:
        endpoint: Address, timeout and retries.

    Attributes:
        usage: Number of replies and tokens so far.

    Raises:
        ConfigError: The package ``openai`` is not installed, or the key is not set.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        try:
            import openai
        except ImportError:
            raise ConfigError("a server needs the openai client: pip install 'medtune[judges]'") from None
        self.endpoint, self.usage = endpoint, Usage()
        self._api, self._key, self._lock = openai, endpoint.read_key(), threading.Lock()
        self._client = openai.OpenAI(
            base_url=endpoint.base_url,
            api_key=self._key,
            timeout=endpoint.timeout,
            max_retries=endpoint.max_retries,
            # Patients' images must go only to the address in the config, not to one that it redirects to.
            http_client=openai.DefaultHttpxClient(follow_redirects=False),
        )
        # The package reads these from the environment; they belong to an account of another service.
        self._client.organization = self._client.project = None

    def check(self) -> None:
        """Check that the server lists the model. A server without a list of models passes the check.

        Raises:
            ServerSetupError: No server answers, the key is rejected, or the model is not offered.
            ServerFailedError: All attempts fail.
        """
        url, model = self.endpoint.base_url, self.endpoint.model
        try:
            listed = self._client.models.with_raw_response.list().http_response.content
        except self._api.NotFoundError:
            return
        except self._api.OpenAIError as error:
            raise self._explained(error, "the list of models") from None
        try:
            served = [str(entry["id"]) for entry in json.loads(listed)["data"]]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise ServerSetupError(f"{url} gives no list of models; is it the address of the API, with /v1?") from None
        if served and model not in served:
            known = [name for name in served if _MODEL_NAME.fullmatch(name)]
            raise ServerSetupError(f"{url} does not offer the model {model!r}; {nearest(model, known)}")

    def complete(
        self,
        messages: Sequence[dict[str, Any]],
        sampling: SamplingOptions | None = None,
        max_tokens: int | None = None,
        extra: dict[str, Any] | None = None,
        *,
        id: str = "",
    ) -> ChatReply:
        """Send one request; see :class:`~medtune.clients.messages.ChatRequest` for the arguments.

        Raises:
            ServerSetupError: Key, model or address is rejected.
            RequestRefusedError: This request is rejected, or the reply has no text.
            ServerFailedError: All attempts fail, or the reply is not a chat completion.
        """
        what, url = f"request {id!r}" if id else "a request", self.endpoint.base_url
        body = self._body(messages, sampling, max_tokens, extra or {})
        try:
            reply = self._client.chat.completions.with_raw_response.create(**body).http_response
        except self._api.OpenAIError as error:
            raise self._explained(error, what) from None
        shown = self._shown(reply.headers.get("x-request-id"))
        where = described(reply.status_code, shown)
        try:
            read = read_reply(reply.content, shown, id)
        except NoText as error:
            raise RequestRefusedError(f"{what}: {url} sent {error} ({where})", reply.status_code, shown) from None
        except ValueError as error:
            raise ServerFailedError(
                f"{url} gave no answer to {what}: {error} ({where}); see the server's log", reply.status_code, shown
            ) from None
        with self._lock:
            self.usage = self.usage.plus(read)
        return read

    def ask(self, request: ChatRequest) -> ChatReply:
        """Call :meth:`complete` for a request."""
        return self.complete(request.messages, request.sampling, request.max_tokens, request.extra, id=request.id)

    def map(
        self,
        requests: Iterable[ChatRequest],
        concurrency: int = 8,
        on_error: Callable[[ChatRequest, DataError], None] | None = None,
    ) -> Iterator[ChatReply]:
        """Yield replies in the order of the requests, with ``concurrency`` requests in flight.

        Args:
            requests: Requests; only a few are read ahead.
            concurrency: Number of requests in flight.
            on_error: Called with a request that is rejected, which is then skipped; None raises the error.
        """
        for request, future in in_order(self.ask, requests, concurrency):
            try:
                reply = future.result()
            except DataError as error:
                if on_error is None:
                    raise
                on_error(request, error)
                continue
            yield reply

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _body(
        self,
        messages: Sequence[dict[str, Any]],
        sampling: SamplingOptions | None,
        max_tokens: int | None,
        extra: dict[str, Any],
    ) -> dict[str, Any]:
        more = {name: value for name, value in extra.items() if name != "extra_headers"}
        body: dict[str, Any] = {"model": self.endpoint.model, "messages": list(messages), "temperature": 0}
        if sampling is not None and sampling.top_k != 1:  # top_k=1 is greedy, the same as temperature 0
            body |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": sampling.seed}
            more = {**({"top_k": sampling.top_k} if sampling.top_k else {}), **more}
        if max_tokens is not None:
            body["max_tokens"] = max_tokens
        return {**body, "extra_body": more or None, "extra_headers": extra.get("extra_headers")}

    def _shown(self, request_id: str | None) -> str | None:
        return shown_request_id(request_id, "" if self._key == NO_KEY else self._key)

    def _explained(self, error: Any, what: str) -> MedtuneError:
        """Convert an error of the package to one of ours."""
        api, url, model = self._api, self.endpoint.base_url, self.endpoint.model
        status: int | None = getattr(error, "status_code", None)
        shown = self._shown(getattr(error, "request_id", None))
        where, known = described(status, shown), (status, shown)
        if isinstance(error, api.AuthenticationError | api.PermissionDeniedError):
            name = self.endpoint.api_key_env
            key_source = f"of {name}" if name else f"(none: set {self.endpoint.key}.api_key_env)"
            return ServerSetupError(f"{url} refused the key {key_source} ({where})", *known)
        if isinstance(error, api.NotFoundError):
            return ServerSetupError(f"{url} has no model {model!r} or no chat completions ({where})", *known)
        if status is not None and 300 <= status < 400:
            return ServerSetupError(
                f"{url} forwards to another address ({where}), which is not followed; give that", *known
            )
        if isinstance(error, api.APIStatusError) and status is not None and status < 500 and status not in (408, 429):
            return RequestRefusedError(f"{what}: {url} refused it with {where}; see the server's log", *known)
        timed_out = isinstance(error, api.APITimeoutError)
        if isinstance(error, api.APIConnectionError) and not timed_out and not _broke_off(error):
            return ServerSetupError(f"{url} cannot be reached ({what}); is the server running, and the address right?")
        kind = f"{where}{_pause(error)}, its log says why" if status else _kind(error)
        attempts = f"{self.endpoint.max_retries + 1} attempts of {self.endpoint.timeout:g} s"
        return ServerFailedError(
            f"{url} did not answer {what} in {attempts} ({kind}); the same command goes on", *known
        )


def _broke_off(error: Exception) -> bool:
    return type(error.__cause__).__name__ in BROKEN_OFF


def _kind(error: Exception) -> str:
    return "the connection broke off" if _broke_off(error) else type(error).__name__


def _pause(error: Any) -> str:
    """Return the pause that the server asks for as text; only a number of seconds is shown."""
    value = error.response.headers.get("retry-after", "")
    return f", it asks for a pause of {int(value)} s" if value.isdecimal() and len(value) < 8 else ""
