"""Tokens and cost of the requests to a model, held to a budget."""

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from medtune.clients.messages import images_in
from medtune.errors import ConfigError, MedtuneError

BYTES_PER_TOKEN = 4.0
TURN_TOKENS = 8
DEFAULT_REPLY = 1024
"""Tokens that a reply is taken to have when its length is not limited."""


class BudgetSpentError(MedtuneError):
    """The next request could exceed the budget, so it was not sent."""


@dataclass(frozen=True)
class Prices:
    """What a server charges.

    Attributes:
        input: Price of a million tokens of requests; None if unknown or free.
        output: Price of a million tokens of replies; None if unknown or free.
        currency: For texts only.

    Raises:
        ValueError: A price is negative.
    """

    input: float | None = None
    output: float | None = None
    currency: str = "USD"

    def __post_init__(self) -> None:
        for price in (self.input, self.output):
            if price is not None and not (price >= 0 and math.isfinite(price)):
                raise ValueError("prices must not be negative")

    @property
    def known(self) -> bool:
        """Whether there is a price."""
        return self.input is not None or self.output is not None

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return the price of some tokens."""
        return (prompt_tokens * (self.input or 0.0) + completion_tokens * (self.output or 0.0)) / 1e6


@dataclass(frozen=True)
class Budget:
    """What a run may spend, over all its starts; None is no limit, 0 allows no request at all.

    Attributes:
        max_cost: In the currency of the prices.
        max_tokens: Tokens of requests and replies together.
        max_requests: Replies that the server is asked for.

    Raises:
        ValueError: A limit is negative.
    """

    max_cost: float | None = None
    max_tokens: int | None = None
    max_requests: int | None = None

    def __post_init__(self) -> None:
        for limit in (self.max_cost, self.max_tokens, self.max_requests):
            if limit is not None and not limit >= 0:
                raise ValueError("limits must not be negative")


@dataclass(frozen=True)
class Spent:
    """What a number of requests has used, or may use.

    Attributes:
        requests: Replies that a server was asked for.
        prompt_tokens: Tokens of the requests.
        completion_tokens: Tokens of the replies.
    """

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
        )

    def __sub__(self, other: "Spent") -> "Spent":
        return self + Spent(-other.requests, -other.prompt_tokens, -other.completion_tokens)

    def cost(self, prices: Prices) -> float:
        """Return the price."""
        return prices.cost(self.prompt_tokens, self.completion_tokens)

    def priced(self, prices: Prices) -> dict[str, Any]:
        """Return tokens and cost as plain values for a manifest; without prices the cost is None."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "cost": round(self.cost(prices), 6) if prices.known else None,
            "currency": prices.currency if prices.known else None,
        }


class Ledger:
    """Counts what a run spends and keeps it within its budget; safe to call from several threads.

    A request first reserves what it may cost at most (:func:`estimate`). If that does not fit beside the requests in
    flight, it waits until they have been counted with their true cost.

    Args:
        budget: The limits.
        prices: What the server charges.
        key: Config key of the budget, for errors.

    Attributes:
        spent: What was used so far; what earlier starts of a run have used is added to it.

    Raises:
        ConfigError: ``max_cost`` is set and no price is.
    """

    def __init__(self, budget: Budget, prices: Prices, key: str = "budget") -> None:
        if budget.max_cost is not None and not prices.known:
            raise ConfigError(f"{key}.max_cost needs prices, per million tokens: set server.prices.input and .output")
        self.budget, self.prices, self.key = budget, prices, key
        self.spent, self._reserved = Spent(), Spent()
        self._changed = threading.Condition()

    @contextmanager
    def reserved(self, most: Spent) -> Iterator[list[Spent]]:
        """Reserve what a request may use; the block appends what it has used to the list that it gets.

        Raises:
            BudgetSpentError: The request does not fit into the budget.
        """
        with self._changed:
            while (limit := self._exceeded(self.spent + self._reserved + most)) is not None:
                if self._reserved == Spent():
                    raise BudgetSpentError(self._explained(limit, most))
                self._changed.wait()
            self._reserved += most
        used: list[Spent] = []
        try:
            yield used
        finally:
            with self._changed:
                self._reserved -= most
                for part in used:
                    self.spent += part
                self._changed.notify_all()

    def _exceeded(self, total: Spent) -> str | None:
        """Return the name of a limit that a total exceeds, if there is one."""
        limits = self.budget
        tokens = total.prompt_tokens + total.completion_tokens
        for name, limit, value in (
            ("max_requests", limits.max_requests, total.requests),
            ("max_tokens", limits.max_tokens, tokens),
            ("max_cost", limits.max_cost, total.cost(self.prices)),
        ):
            if limit is not None and value > limit:
                return name
        return None

    def _explained(self, limit: str, most: Spent) -> str:
        spent, value = self.spent, getattr(self.budget, limit)
        tokens = spent.prompt_tokens + spent.completion_tokens
        cost = f", {spent.cost(self.prices):.4g} {self.prices.currency}" if self.prices.known else ""
        more = f"up to {most.prompt_tokens + most.completion_tokens} tokens"
        return (
            f"the budget is spent ({self.key}.{limit}: {value:g}): {spent.requests} requests, {tokens} tokens{cost} so "
            f"far, and the next request may take {more}; raise {self.key}.{limit} and give the same command again"
        )


def estimate(messages: Sequence[dict[str, Any]], max_tokens: int | None, image_tokens: int) -> Spent:
    """Return what one request uses at most, before it is sent.

    A token is taken to be four bytes of text, which is about right for English and cautious for no language with other
    scripts; the server's own count replaces the estimate when the reply has come.

    Args:
        messages: Turns ``{role, content}``.
        max_tokens: Limit of the reply; None counts :data:`DEFAULT_REPLY`.
        image_tokens: Tokens of one image.
    """
    length = 0
    for turn in messages:
        parts = [{"text": turn["content"]}] if isinstance(turn["content"], str) else turn["content"]
        length += sum(len(str(part.get("text", "")).encode("utf-8", "replace")) for part in parts)
    prompt = math.ceil(length / BYTES_PER_TOKEN) + TURN_TOKENS * len(messages) + image_tokens * images_in(messages)
    return Spent(1, prompt, DEFAULT_REPLY if max_tokens is None else max_tokens)
