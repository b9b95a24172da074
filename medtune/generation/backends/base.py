"""What `predict` asks of whatever answers: medtune's own models, a server, or a checkpoint that transformers runs."""

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import torch

from medtune.data.randomness import sample_rng
from medtune.errors import ConfigError, DataError
from medtune.generation.engine.sampling import Sampling
from medtune.generation.requests import Generation, Request


@dataclass(frozen=True)
class AnswerSettings:
    """How answers are made; the same for every backend.

    Attributes:
        max_new_tokens: Bound for requests that have none of their own.
        device: For models that run in this process.
        dtype: Of their weights.
        on_error: Called with a request that cannot be used, which is then left out; None raises.
        sampling: For requests that have none of their own; None is greedy.
    """

    max_new_tokens: int
    device: torch.device
    dtype: torch.dtype
    on_error: Callable[[Request, DataError], None] | None = None
    sampling: Sampling | None = None

    def refuse(self, request: Request, error: DataError) -> None:
        """Take note of a request that cannot be used, or stop."""
        if self.on_error is None:
            raise error
        self.on_error(request, error)

    def bound(self, request: Request) -> int:
        """Most tokens of an answer."""
        return self.max_new_tokens if request.max_new_tokens is None else request.max_new_tokens

    def sampling_of(self, request: Request) -> Sampling | None:
        """How a request's tokens are drawn: its own sampling, else the settings'; None is greedy."""
        return self.sampling if request.sampling is None else request.sampling


def for_one_request(sampling: Sampling, request_id: str) -> Sampling:
    """The sampling with a seed that belongs to one request, for programs that draw by a seed alone.

    Two requests with one prompt then get two answers, and one request gets the same answer again.
    """
    return replace(sampling, seed=sample_rng(sampling.seed, 0, 0, stream=request_id).getrandbits(31))


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
