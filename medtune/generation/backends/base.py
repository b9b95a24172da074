"""Interface of the backends of `predict`: medtune's own models, a server, or a checkpoint that transformers runs."""

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
    """Settings for making answers, the same for every backend.

    Attributes:
        max_new_tokens: Maximum number of generated tokens for requests that set none.
        device: Device of models that run in this process.
        dtype: Type of their weights.
        on_error: Called with a request that cannot be used, which is then skipped; None raises the error.
        sampling: Sampling for requests that set none; None is greedy decoding.
    """

    max_new_tokens: int
    device: torch.device
    dtype: torch.dtype
    on_error: Callable[[Request, DataError], None] | None = None
    sampling: Sampling | None = None

    def refuse(self, request: Request, error: DataError) -> None:
        """Report a request that cannot be used to ``on_error``; raise the error if there is no ``on_error``."""
        if self.on_error is None:
            raise error
        self.on_error(request, error)

    def bound(self, request: Request) -> int:
        """Return the maximum number of tokens of a request's answer."""
        return self.max_new_tokens if request.max_new_tokens is None else request.max_new_tokens

    def sampling_of(self, request: Request) -> Sampling | None:
        """Return the sampling of a request: its own, or that of the settings; None is greedy decoding."""
        return self.sampling if request.sampling is None else request.sampling


def for_one_request(sampling: Sampling, request_id: str) -> Sampling:
    """Return the sampling with a seed for one request, for programs whose only source of randomness is a seed.

    Two requests with the same prompt then get different seeds, and a repeated request gets the same seed again.
    """
    return replace(sampling, seed=sample_rng(sampling.seed, 0, 0, stream=request_id).getrandbits(31))


class Answerer(Protocol):
    """Answers requests; medtune's own generator is one."""

    @property
    def images_encoded(self) -> int:
        """Number of images that were encoded or sent so far."""
        ...

    def batches(self, requests: Iterable[Request], done: Container[str] = frozenset()) -> Iterator[list[Generation]]:
        """Answer all requests except those in ``done``, a few at a time."""
        ...


class Backend(Protocol):
    """A model that answers requests. Creating the object is cheap; it opens no file or connection.

    Attributes:
        remote: Whether the model runs outside of this process, on an unknown device.
        scores: Whether it computes the likelihoods of a request's continuations.
    """

    remote: ClassVar[bool]
    scores: ClassVar[bool]

    def identity(self) -> dict[str, Any]:
        """Return the values on which the answers depend, whatever machine the model runs on."""
        ...

    def open(self, settings: AnswerSettings) -> Answerer:
        """Load the model or connect to it."""
        ...


def refuse_likelihoods(protocols: Sequence[str], scored: Sequence[str]) -> None:
    """Reject protocols that compare likelihoods of given texts, for a backend that cannot compute them.

    Args:
        protocols: The requested protocols.
        scored: Those of them that have continuations.

    Raises:
        ConfigError: If ``scored`` is not empty; the message holds the list of protocols without them.
    """
    if scored:
        allowed = ", ".join(name for name in protocols if name not in scored)
        raise ConfigError(
            f"protocol {scored[0]!r} needs the likelihood of given answers, which this backend does not tell (servers "
            f"give log-probabilities of what they wrote alone); leave it out: 'protocols=[{allowed}]'"
        )
