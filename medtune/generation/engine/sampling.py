"""Choice of the next token: the most likely one, or a random one that depends on the request but not on its batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medtune.data.randomness import sample_rng
from medtune.errors import ConfigError


@dataclass(frozen=True)
class Sampling:
    """Settings for sampling tokens, as opposed to greedy decoding.

    Attributes:
        temperature: Divides the logits.
        top_p: Keeps the smallest set of most likely tokens whose probabilities sum to at least this value.
        top_k: Keeps this number of most likely tokens; 0 keeps all.
        seed: Seed. All randomness of an answer comes from the seed and the request's id, and never from its batch.
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
    """The sampling settings and the random numbers of one answer.

    The k-th number is a function of (seed, request id, k), so an answer does not depend on its batch.

    Args:
        name: The request's id.
        sampling: Settings; None for greedy decoding.
    """

    def __init__(self, name: str, sampling: Sampling | None) -> None:
        self.sampling = sampling
        self._stream = sample_rng(sampling.seed, 0, 0, stream=name) if sampling else None

    def next(self) -> float:
        """Return the next number in [0, 1); always 0 in greedy decoding, which needs no number."""
        return self._stream.random() if self._stream else 0.0


def choose(logits: Tensor, draws: Sequence[Draws]) -> Tensor:
    """Choose the next token of each row; a batch may hold both greedy and sampled rows.

    Args:
        logits: Shape ``[rows, vocabulary]``.
        draws: Settings and random numbers, one per row.

    Returns:
        Token ids of shape ``[rows]``.
    """
    tokens = logits.argmax(dim=-1)
    rows: dict[Sampling, list[int]] = {}
    for row, drawn in enumerate(draws):
        if drawn.sampling is not None:
            rows.setdefault(drawn.sampling, []).append(row)
    for sampling, sampled_rows in rows.items():
        index = torch.tensor(sampled_rows, device=logits.device)
        uniform = torch.tensor([draws[row].next() for row in sampled_rows], dtype=torch.float32, device=logits.device)
        tokens[index] = draw(logits[index], uniform, sampling)
    return tokens


class Sampler:
    """Chooses one token per row and step.

    Args:
        ids: Request ids, one per row.
        sampling: One setting for all rows, or one per row; None is greedy decoding.
    """

    def __init__(self, ids: Sequence[str], sampling: Sampling | None | Sequence[Sampling | None]) -> None:
        settings = [sampling] * len(ids) if sampling is None or isinstance(sampling, Sampling) else sampling
        self._draws = [Draws(name, setting) for name, setting in zip(ids, settings, strict=True)]

    def __call__(self, logits: Tensor) -> Tensor:
        """Return the next tokens ``[rows]`` for logits ``[rows, vocabulary]``."""
        return choose(logits, self._draws)


def draw(logits: Tensor, uniform: Tensor, sampling: Sampling) -> Tensor:
    """Sample tokens by inverse transform sampling, after temperature, top-k and top-p.

    Tokens are sorted by probability, the distribution is truncated and renormalised, and ``uniform`` is the quantile.

    Args:
        logits: Shape ``[rows, vocabulary]``.
        uniform: Numbers in [0, 1), shape ``[rows]``.
        sampling: Temperature, top-k and top-p.

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
    # Rounding may put the quantile past the last kept token; take that token then.
    rank = torch.searchsorted(cumulative, quantile, right=True).clamp(max=kept.sum(dim=-1, keepdim=True) - 1)
    return order.gather(1, rank).squeeze(1)
