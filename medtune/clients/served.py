"""A served model as a config names it, and a client of it whose replies are kept, counted and held to a budget."""

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medtune.clients.budget import Budget, Ledger, Prices, Spent, estimate
from medtune.clients.cache import ReplyCache, content_key
from medtune.clients.errors import NoTextError
from medtune.clients.messages import ChatRequest, digested, shown
from medtune.clients.openai import ChatClient, Endpoint, request_body
from medtune.config import to_plain
from medtune.masking import MASK, masked

_FORMAT = 1  # of the key of a request; a change makes all caches ask anew


@dataclass(frozen=True)
class ServedModel:
    """A model behind a server with OpenAI's chat API, and what it costs.

    Attributes:
        base_url: Address up to and with ``/v1``; nothing is sent to any other address.
        model: Name under which the server offers the model.
        api_key_env: Environment variable that holds the key; null for servers that need no key.
        concurrency: Number of requests in flight.
        timeout: Seconds until an attempt counts as failed.
        max_retries: Number of further attempts after a temporary failure, with pauses that grow to half a minute.
        requests_per_minute: Maximum number of requests that start per minute; null for no limit.
        options: Further fields of a request's body; ``extra_headers`` in it are sent as HTTP headers.
        prices: Price of a million tokens.
        image_tokens: Tokens of one image, for the estimate before the server has counted them.

    Raises:
        ConfigError: The address or another value cannot be used.
        ValueError: A number is out of range.
    """

    base_url: str
    model: str
    api_key_env: str | None = None
    concurrency: int = 8
    timeout: float = 120.0
    max_retries: int = 10
    requests_per_minute: float | None = None
    options: dict[str, Any] = field(default_factory=dict)
    prices: Prices = field(default_factory=Prices)
    image_tokens: int = 1000

    def __post_init__(self) -> None:
        self.endpoint()
        if self.concurrency < 1 or self.image_tokens < 0:
            raise ValueError("server: concurrency must be positive, image_tokens not negative")
        headers = self.options.get("extra_headers", {})
        if not isinstance(headers, dict) or not all(isinstance(value, str) for value in headers.values()):
            raise ValueError("server.options.extra_headers must be names and texts")

    def endpoint(self) -> Endpoint:
        """Return address, timeout, retries and pace."""
        return Endpoint(
            self.base_url,
            self.model,
            self.api_key_env,
            self.timeout,
            self.max_retries,
            self.requests_per_minute,
            key="server",
        )

    def identity(self) -> dict[str, Any]:
        """Return what replies depend on: the model's name and the fields of the body, not the address."""
        return {"model": self.model, "options": self._fields()}

    def request_key(self, request: ChatRequest, version: str) -> str:
        """Return the key of a request: model, version of the prompt, turns with the pixels of images, and sampling.

        Args:
            request: The request; its id is not part of the key.
            version: Name and version of the prompt.
        """
        sampling = request.sampling
        how = None if sampling is None else [sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed]
        fields = {name: value for name, value in {**self._fields(), **request.extra}.items() if name != "extra_headers"}
        return content_key(
            {
                "format": _FORMAT,
                "model": self.model,
                "version": version,
                "messages": digested(request.messages),
                "sampling": how,
                "max_tokens": request.max_tokens,
                "fields": fields,
            }
        )

    def estimate(self, request: ChatRequest) -> Spent:
        """Return what a request may use at most."""
        return estimate(request.messages, request.max_tokens, self.image_tokens)

    def shown_request(self, request: ChatRequest) -> str:
        """Return a request as it would be sent, as text: credentials masked, each image as one line."""
        extra = {**self.options, **request.extra}
        headers = {name: MASK for name in extra.get("extra_headers", {})}
        if self.api_key_env:
            headers["Authorization"] = f"Bearer {MASK} (from the environment variable {self.api_key_env})"
        body, more = request_body(self.model, shown(request.messages), request.sampling, request.max_tokens, extra)
        lines = [f"POST {self.base_url.rstrip('/')}/chat/completions"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\n".join([*lines, json.dumps(masked({**body, **more}), indent=2, ensure_ascii=False)])

    def _fields(self) -> dict[str, Any]:
        return {name: value for name, value in self.options.items() if name != "extra_headers"}


@dataclass(frozen=True)
class KeptReply:
    """A reply that is on the disk.

    Attributes:
        text: What the model wrote; None if it declined to answer.
        finish_reason: Why it ended; empty if unknown.
        asked: Whether this run has asked for it, at this start or an earlier one; else it was in the cache.
    """

    text: str | None
    finish_reason: str
    asked: bool


class RecordedClient:
    """A client that asks nothing twice: replies are kept in a cache, counted, and held to a budget.

    Args:
        server: The served model.
        cache: File of the replies; several runs may share it.
        run: Id of the run. What its earlier starts have spent is read from the cache under this id.
        budget: What the run may spend.
        say: Called with messages for the user.

    Attributes:
        client: The client that asks.
        ledger: What was spent.

    Raises:
        ConfigError: The client is not installed, the key is not set, or the budget needs prices.
        CacheError: The cache cannot be used.
    """

    def __init__(
        self, server: ServedModel, cache: Path, run: str, budget: Budget, say: Callable[[str], None] = print
    ) -> None:
        self.server, self.run, self.say = server, run, say
        self._checked, self._lock = False, threading.Lock()
        self.ledger = Ledger(budget, server.prices)
        self.client = ChatClient(server.endpoint())
        self.cache = ReplyCache(cache)
        for row in self.cache.rows():
            if row.get("run") == run:
                self.ledger.spent += Spent(1, row.get("prompt_tokens", 0), row.get("completion_tokens", 0))
        if self.cache.cut:
            say(f"{cache}: cut off a torn last line of {self.cache.cut} bytes")

    def tell_versions(self, versions: Sequence[str]) -> None:
        """Tell the user if the cache holds replies to other prompts only, so that everything is asked anew."""
        held = self.cache.versions()
        others = {version: count for version, count in held.items() if version not in versions}
        if others and not any(version in held for version in versions):
            named = ", ".join(f"{count} replies to {version}" for version, count in sorted(others.items()))
            self.say(f"{self.cache.path} holds {named}; this run uses {', '.join(versions)} and asks anew")

    def ask(self, request: ChatRequest, version: str) -> KeptReply:
        """Return the reply to a request, from the cache if it is there.

        Args:
            request: The request.
            version: Name and version of its prompt.

        Raises:
            BudgetSpentError: The request is not in the cache, and does not fit into the budget.
            RequestRefusedError: The server rejects the request; nothing is kept.
            ServerSetupError: Key, model or address is rejected.
            ServerFailedError: All attempts fail.
            CacheError: The reply cannot be kept.
        """
        key = self.server.request_key(request, version)
        row, _ = self.cache.find_or_ask(key, lambda: self._send(request, version))
        return KeptReply(row["text"], row.get("finish_reason", ""), row.get("run") == self.run)

    def spending(self) -> dict[str, Any]:
        """Return what was asked and spent, for a manifest."""
        spent = self.ledger.spent
        priced = spent.priced(self.ledger.prices)
        return {"asked": spent.requests, **priced, "failed_attempts": dict(self.client.failures)}

    def stop(self) -> None:
        """End the pauses of requests that wait to be sent again, after an interruption by the user."""
        self.client.pacer.stop()

    def close(self) -> None:
        """Close connections and cache."""
        self.client.close()
        self.cache.close()

    def __enter__(self) -> "RecordedClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, request: ChatRequest, version: str) -> dict[str, Any]:
        extra = {**self.server.options, **request.extra}
        with self._lock:  # only now: a run whose replies are all in the cache needs no server
            if not self._checked:
                self.client.check()
            self._checked = True
        with self.ledger.reserved(self.server.estimate(request)) as used:
            text: str | None
            try:
                reply = self.client.complete(
                    request.messages, request.sampling, request.max_tokens, extra, id=request.id
                )
                text, reason = reply.text, reply.finish_reason
                prompt, completion = reply.prompt_tokens, reply.completion_tokens
            except NoTextError as error:  # it was paid for, and would be the same again
                text, reason = None, error.finish_reason
                prompt, completion = error.prompt_tokens, error.completion_tokens
            used.append(Spent(1, prompt, completion))
        return {
            "run": self.run,
            "version": version,
            "model": self.server.model,
            "text": text,
            "finish_reason": reason,
            "prompt_tokens": prompt,
            "completion_tokens": completion,
        }


def estimate_lines(most: Spent, prices: Prices, budget: Budget, note: str) -> list[str]:
    """Return what a dry run says of the requests that would be sent.

    Args:
        most: What they take at most.
        prices: Of the server.
        budget: What the run may spend.
        note: Ends the line with the number of requests.
    """
    cost = f"cost: at most {most.cost(prices):,.2f} {prices.currency}"
    limits = {name: value for name, value in to_plain(budget).items() if value is not None}
    return [
        f"requests: {most.requests}, less those whose replies a cache already holds; {note}",
        f"estimate: at most {most.prompt_tokens:,} tokens of requests and {most.completion_tokens:,} of replies",
        *([cost] if prices.known else []),
        "budget: " + (", ".join(f"{name} {value:g}" for name, value in limits.items()) or "none"),
    ]
