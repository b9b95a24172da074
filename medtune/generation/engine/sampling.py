"""Choosing the next token: the likeliest, or a draw that belongs to the request and not to its batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medtune.data.randomness import sample_rng
from medtune.errors import ConfigError


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn when the answer should not be the greedy one.

    Attributes:
        temperature: Divides the logits.
        top_p: Only the likeliest tokens whose probabilities first reach this sum are kept.
        top_k: Only this many likeliest tokens are kept; 0 keeps all.
        seed: With the request's id, the whole randomness of its answer, whatever shares its batch.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ConfigError(f"temperature {self.temperature} is not positive; leave sampling out for greedy answers")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p {self.top_p} is not in (0, 1]")
        if self.top_k < 0:
            raise ConfigError(f"top_k {self.top_k} is negative; 0 keeps all tokens")


class Draws:
    """How one answer's tokens are chosen, and the random numbers of it.

    The k-th number is a function of (seed, request id, k), so an answer does not depend on its batch.

    Args:
        name: The request's id.
        sampling: None for the likeliest tokens.
    """

    def __init__(self, name: str, sampling: Sampling | None) -> None:
        self.sampling = sampling
        self._stream = sample_rng(sampling.seed, 0, 0, stream=name) if sampling else None

    def next(self) -> float:
        """The next number in [0, 1); 0 for the likeliest token, which needs none."""
        return self._stream.random() if self._stream else 0.0


def choose(logits: Tensor, draws: Sequence[Draws]) -> Tensor:
    """The next token of each row; greedy and drawn rows may share a batch.

    Args:
        logits: Shape ``[rows, vocabulary]``.
        draws: One per row.

    Returns:
        Token ids of shape ``[rows]``.
    """
    tokens = logits.argmax(dim=-1)
    rows: dict[Sampling, list[int]] = {}
    for row, drawn in enumerate(draws):
        if drawn.sampling is not None:
            rows.setdefault(drawn.sampling, []).append(row)
    for sampling, mine in rows.items():
        index = torch.tensor(mine, device=logits.device)
        uniform = torch.tensor([draws[row].next() for row in mine], dtype=torch.float32, device=logits.device)
        tokens[index] = draw(logits[index], uniform, sampling)
    return tokens


class Sampler:
    """Picks one token per row and step.

    Args:
        ids: Request ids, one per row.
        sampling: One setting for all rows, or one per row; None is the likeliest token.
    """

    def __init__(self, ids: Sequence[str], sampling: Sampling | None | Sequence[Sampling | None]) -> None:
        settings = [sampling] * len(ids) if sampling is None or isinstance(sampling, Sampling) else sampling
        self._draws = [Draws(name, setting) for name, setting in zip(ids, settings, strict=True)]

    def __call__(self, logits: Tensor) -> Tensor:
        """The next tokens [rows] for logits [rows, vocabulary]."""
        return choose(logits, self._draws)


def draw(logits: Tensor, uniform: Tensor, sampling: Sampling) -> Tensor:
    """Tokens at given quantiles of the tempered, cut and renormalised distribution.

    Args:
        logits: Shape ``[rows, vocabulary]``.
        uniform: Numbers in [0, 1), shape ``[rows]``.
        sampling: Temperature and cuts.

    Returns:
        Token ids of shape ``[rows]``.
    """
    probabilities, order = (logits.float() / sampling.temperature).softmax(dim=-1).sort(dim=-1, descending=True)
    before = probabilities.cumsum(dim=-1) - probabilities
    kept = before < sampling.top_p
    kept[:, 0] = True
    if sampling.top_k:
        kept[:, sampling.top_k :] = False
    cumulative = (probabilities * kept).cumsum(dim=-1)
    quantile = uniform[:, None] * cumulative[:, -1:]
    # Rounding may put the quantile at the very end: the last kept token is then meant.
    rank = torch.searchsorted(cumulative, quantile, right=True).clamp(max=kept.sum(dim=-1, keepdim=True) - 1)
    return order.gather(1, rank).squeeze(1)
