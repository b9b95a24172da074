"""A client of any server with OpenAI's chat API: vLLM, SGLang, llama.cpp, a hospital's gateway.

It wraps the package ``openai`` (extra ``judges``). Temporary failures are tried again (:mod:`medtune.clients.retries`).
Requests go only to ``base_url``: redirects are not followed. Of the environment, only the variable with the key is
read, and for https the proxy, which cannot read what passes. Errors contain a status and a request id, never the
server's message.
"""

import json
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

from medtune.clients.concurrency import in_order
from medtune.clients.errors import (
    NoTextError,
    RequestRefusedError,
    ServerFailedError,
    ServerSetupError,
    described,
    shown_request_id,
)
from medtune.clients.messages import ChatReply, ChatRequest, NoText, SamplingOptions, Usage, encoded, read_reply
from medtune.clients.retries import Interrupted, Pacer, TemporaryError, asked_pause, attempted
from medtune.config import nearest
from medtune.errors import ConfigError, DataError, MedtuneError

ReplyT = TypeVar("ReplyT")
NO_KEY = "none"
WITHOUT_LIST = (404, 405, 501)
"""Statuses of servers that have no list of models."""
CHECK_RETRIES = 2
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
        max_retries: Number of further attempts after a temporary failure (no connection, timeout, 408, 409, 429, 5xx, a
            reply that is cut off). The pauses between them grow, unless the server asks for a certain pause.
        requests_per_minute: Maximum number of requests that start per minute; None for no limit.
        key: Config key of these values, for error messages.

    Raises:
        ConfigError: A value is invalid.
    """

    base_url: str
    model: str
    api_key_env: str | None = None
    timeout: float = 120.0
    max_retries: int = 6
    requests_per_minute: float | None = None
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
        if self.requests_per_minute is not None and not self.requests_per_minute > 0:
            raise ConfigError(f"{self.key}: requests_per_minute must be positive, or null for no limit")

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


def request_body(
    model: str,
    messages: Sequence[dict[str, Any]],
    sampling: SamplingOptions | None,
    max_tokens: int | None,
    extra: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the fields of a request's body: those of OpenAI's API, and further ones that some servers know.

    Args:
        model: Name under which the server offers the model.
        messages: Turns ``{role, content}`` as they are sent.
        sampling: Sampling settings; None for greedy decoding.
        max_tokens: Maximum number of tokens of the reply; None uses the server's default.
        extra: Further fields of the body; its field ``extra_headers`` is no part of it.
    """
    more = {name: value for name, value in extra.items() if name != "extra_headers"}
    body: dict[str, Any] = {"model": model, "messages": list(messages), "temperature": 0}
    if sampling is not None and sampling.top_k != 1:  # top_k=1 is greedy, the same as temperature 0
        body |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": sampling.seed}
        more = {**({"top_k": sampling.top_k} if sampling.top_k else {}), **more}
    if max_tokens is not None:
        body["max_tokens"] = max_tokens
    return body, more


class ChatClient:
    """Sends requests to one model of one server; safe to call from several threads.

    Args:
        endpoint: Address, timeout and retries.

    Attributes:
        usage: Number of replies and tokens so far.
        failures: Number of failed attempts so far, by kind; most of them were tried again.
        pacer: Decides when a request may start; ``pacer.stop()`` ends the pauses of all requests.

    Raises:
        ConfigError: The package ``openai`` is not installed, or the key is not set.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        try:
            import openai
        except ImportError:
            raise ConfigError("a server needs the openai client: pip install 'medtune[judges]'") from None
        self.endpoint, self.usage = endpoint, Usage()
        self.failures: Counter[str] = Counter()
        self.pacer = Pacer(endpoint.requests_per_minute)
        self._api, self._key, self._lock = openai, endpoint.read_key(), threading.Lock()
        self._client = openai.OpenAI(
            base_url=endpoint.base_url,
            api_key=self._key,
            timeout=endpoint.timeout,
            max_retries=0,  # see medtune.clients.retries
            # Patients' images must go only to the address in the config, not to one that it redirects to.
            # Nor may they go in the clear to a proxy that the environment names; https passes a proxy encrypted.
            http_client=openai.DefaultHttpxClient(
                follow_redirects=False, trust_env=endpoint.base_url.lower().startswith("https:")
            ),
        )
        # The package reads these from the environment; they belong to an account of another service.
        self._client.organization = self._client.project = None

    def check(self) -> None:
        """Check that the server lists the model. A server that gives no list, or not now, passes the check.

        Raises:
            ServerSetupError: No server answers, the key is rejected, or the model is not offered.
        """
        url, model = self.endpoint.base_url, self.endpoint.model

        def send() -> bytes | None:
            try:
                return bytes(self._client.models.with_raw_response.list().http_response.content)
            except self._api.APIStatusError as error:
                if error.status_code in WITHOUT_LIST:
                    return None
                raise self._failed(error, "the list of models") from None
            except self._api.OpenAIError as error:
                raise self._failed(error, "the list of models") from None

        try:
            listed = attempted(send, min(CHECK_RETRIES, self.endpoint.max_retries), self.pacer)
        except ServerFailedError:  # the requests themselves are tried for longer
            return
        if listed is None:
            return
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
            RequestRefusedError: This request is rejected.
            NoTextError: The reply has no text.
            ServerFailedError: All attempts fail, or no attempt brings a chat completion.
        """
        what = f"request {id!r}" if id else "a request"
        body = self._body(messages, sampling, max_tokens, extra or {})

        def send() -> ChatReply:
            try:
                reply = self._client.chat.completions.with_raw_response.create(**body).http_response
            except self._api.OpenAIError as error:
                raise self._failed(error, what) from None
            return self._read(reply, what, id)

        read = self._sent(send, what)
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
        body, more = request_body(self.endpoint.model, encoded(messages), sampling, max_tokens, extra)
        return {**body, "extra_body": more or None, "extra_headers": extra.get("extra_headers")}

    def _shown(self, request_id: str | None) -> str | None:
        return shown_request_id(request_id, "" if self._key == NO_KEY else self._key)

    def _sent(self, send: Callable[[], ReplyT], what: str) -> ReplyT:
        try:
            return attempted(send, self.endpoint.max_retries, self.pacer)
        except Interrupted:
            raise ServerFailedError(f"{what} was not sent, because the run was interrupted") from None

    def _read(self, reply: Any, what: str, id: str) -> ChatReply:
        """Read a reply; one that is no chat completion was cut off on its way, or a gateway answered in its place."""
        url, shown = self.endpoint.base_url, self._shown(reply.headers.get("x-request-id"))
        where = described(reply.status_code, shown)
        try:
            return read_reply(reply.content, shown, id)
        except NoText as error:
            refused = NoTextError(f"{what}: {url} sent {error} ({where})", reply.status_code, shown)
            refused.finish_reason = error.reply.finish_reason
            refused.prompt_tokens, refused.completion_tokens = error.reply.prompt_tokens, error.reply.completion_tokens
            raise refused from None
        except ValueError as error:
            failed = ServerFailedError(
                f"{url} gave no answer to {what}: {error} ({where}); see the server's log", reply.status_code, shown
            )
            self._count("no chat completion")
            raise TemporaryError(failed, asked_pause(reply.headers)) from None

    def _failed(self, error: Any, what: str) -> Exception:
        """Convert an error of the package to a temporary one that holds ours, or to ours."""
        ours, status = self._explained(error, what), getattr(error, "status_code", None)
        if status is None:
            passes, headers = isinstance(error, self._api.APIConnectionError), {}
            self._count("timeout" if isinstance(error, self._api.APITimeoutError) else "no connection")
        else:
            headers, self_said = error.response.headers, error.response.headers.get("x-should-retry")
            passes = self_said == "true" or (
                self_said != "false" and (status in (408, 409, 429) or (status >= 500 and status != 501))
            )
            self._count(f"status {status}")
        return TemporaryError(ours, asked_pause(headers), status in (429, 503)) if passes else ours

    def _count(self, kind: str) -> None:
        with self._lock:
            self.failures[kind] += 1

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
