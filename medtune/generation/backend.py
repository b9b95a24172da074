"""What `predict` asks of a model that is not medtune's own: a server, or a checkpoint that transformers runs."""

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch

from medtune.errors import ConfigError, DataError
from medtune.generation.requests import Generation, Request


@dataclass(frozen=True)
class AnswerSettings:
    """How answers are made; the same for every backend.

    Attributes:
        max_new_tokens: Bound for requests that have none of their own.
        device: For models that run in this process.
        dtype: Of their weights.
        on_error: Called with a request that cannot be used, which is then left out; None raises.
    """

    max_new_tokens: int
    device: torch.device
    dtype: torch.dtype
    on_error: Callable[[Request, DataError], None] | None = None

    def refuse(self, request: Request, error: DataError) -> None:
        """Take note of a request that cannot be used, or stop."""
        if self.on_error is None:
            raise error
        self.on_error(request, error)

    def bound(self, request: Request) -> int:
        """Most tokens of an answer."""
        return self.max_new_tokens if request.max_new_tokens is None else request.max_new_tokens


class Answerer(Protocol):
    """Answers requests; medtune's own generator is one."""

    @property
    def images_encoded(self) -> int:
        """Pictures that were encoded or sent so far."""
        ...

    def batches(self, requests: Iterable[Request], done: Container[str] = frozenset()) -> Iterator[list[Generation]]:
        """Answer all requests but those in ``done``, a few at a time."""
        ...


class Backend(Protocol):
    """A model that answers; making one is cheap and opens nothing.

    Attributes:
        remote: Whether it runs outside of this process, on a device unknown here.
    """

    remote: ClassVar[bool]

    def identity(self) -> dict[str, Any]:
        """What decides its answers, wherever it runs."""
        ...

    def open(self, settings: AnswerSettings) -> Answerer:
        """Reach or load the model."""
        ...


def refuse_likelihoods(protocols: Sequence[str], scored: Sequence[str]) -> None:
    """Refuse protocols that compare the likelihoods of given texts, which backends do not give.

    Args:
        protocols: Protocols asked for.
        scored: Those among them that have continuations.

    Raises:
        ConfigError: If there is one; the message holds the list without it.
    """
    if scored:
        rest = ", ".join(name for name in protocols if name not in scored)
        raise ConfigError(
            f"protocol {scored[0]!r} needs the likelihood of given answers, which a backend does not tell (servers "
            f"give log-probabilities of what they wrote alone); leave it out: 'protocols=[{rest}]'"
        )
