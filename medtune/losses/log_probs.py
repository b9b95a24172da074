"""Log-probabilities of tokens, for losses that do not add up over tokens; no tensor holds all tokens' logits.

:mod:`medtune.losses.chunks` takes each chunk's gradient in the forward pass, which needs a loss that is a sum over
tokens. A loss of a sequence, such as ``-log sigmoid(beta * (sum_t log p_t - sum_t log p'_t))`` of DPO (Rafailov et al.
2023, Eq. 7), is no such sum: what multiplies the gradient of each ``log p_t`` is known only after all tokens of all
sequences are read. Here the log-probabilities are an output of their own, and any loss may follow.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from medtune.losses.chunks import keep_nothing, leaves_of
from medtune.losses.cross_entropy import IGNORE_INDEX, shifted_targets

Head = Callable[[Tensor], Tensor]


def token_log_probs(hidden: Tensor, labels: Tensor, head: Head, chunk_tokens: int = 512) -> Tensor:
    """``log softmax(head(h_t))[label_{t+1}]`` at each position, differentiable.

    Args:
        hidden: ``[b, s, d]`` decoder states after the last norm.
        labels: ``[b, s]`` unshifted ids, ``IGNORE_INDEX`` where not supervised.
        head: As for :func:`target_log_probs`.
        chunk_tokens: As there.

    Returns:
        ``[b, s]`` in nats, fp32 (fp64 for fp64 logits). The number at position t belongs to the label at t + 1
        (:func:`medtune.losses.cross_entropy.shifted_targets`) and is 0 where there is none.
    """
    targets = shifted_targets(labels).flatten()
    rows = (targets != IGNORE_INDEX).nonzero().squeeze(1)
    if len(rows) == 0:
        rows = rows.new_zeros(1)  # a token whose target is ignored: every process still runs the same backward pass
    found = target_log_probs(hidden.flatten(0, 1).index_select(0, rows), targets[rows], head, chunk_tokens)
    return found.new_zeros(len(targets)).index_copy(0, rows, found).view(labels.shape)


def sequence_log_probs(hidden: Tensor, labels: Tensor, head: Head, chunk_tokens: int = 512) -> tuple[Tensor, Tensor]:
    """Sum of :func:`token_log_probs` over each sequence.

    Args:
        hidden: ``[b, s, d]``.
        labels: ``[b, s]`` unshifted.
        head: As for :func:`target_log_probs`.
        chunk_tokens: As there.

    Returns:
        The sums ``[b]`` in nats, taken in fp64, and how many tokens each adds up, ``[b]``. A sequence without a
        supervised token sums to 0.
    """
    sums = token_log_probs(hidden, labels, head, chunk_tokens).sum(dim=1, dtype=torch.float64)
    return sums, (shifted_targets(labels) != IGNORE_INDEX).sum(dim=1)


def target_log_probs(states: Tensor, targets: Tensor, head: Head, chunk_tokens: int = 512) -> Tensor:
    """``z[target] - logsumexp(z)`` of ``z = head(state)`` for each row, differentiable; logits live chunk by chunk.

    Two exact forms, chosen by what the logits of the first chunk depend on:

    - Nothing in the head is trained: the forward pass takes the gradient of each number with respect to its own state,
      which the backward pass scales. Each row meets the head once.
    - Something in it is trained (the output weight, tied embeddings, an adapter): the forward pass keeps the
      logsumexps; the backward pass makes the logits again, with the same random numbers (dropout) and under the same
      autocast, and takes the gradients of states and of every trained tensor. Each row meets the head twice, for which
      no gradient of the size of the head is held per sequence.

    A second derivative is not available. Activation offloading neither moves nor counts what is kept.

    Args:
        states: ``[n, d]``, one row at least.
        targets: ``[n]`` ids, ``IGNORE_INDEX`` where a row asks for nothing.
        head: Maps ``[t, d]`` to logits ``[t, V]``, each row by itself. What it trains must be leaves: parameters, not
            results of an earlier computation.
        chunk_tokens: Rows whose logits are held at once; 0 holds all.

    Returns:
        ``[n]`` in nats, fp32 (fp64 for fp64 logits), 0 where the target is ignored.
    """
    pieces = len(states) if chunk_tokens == 0 else chunk_tokens
    if not torch.is_grad_enabled():
        parts = zip(states.split(pieces), targets.split(pieces), strict=True)
        return torch.cat([_log_probs(head(state), target)[0] for state, target in parts])
    again = _Again(head, pieces, states.device)
    with keep_nothing():
        found, logsumexps, gradient, leaves = _forward(again, states.detach(), targets, states.requires_grad)
        if leaves:
            return _Remade.apply(again, found, logsumexps, targets, states, *leaves)
        return found if gradient is None else _Scaled.apply(found, gradient, states)


class _Again:
    """The head, called on chunk after chunk, and a second time as though it were the first.

    Args:
        head: The head.
        rows: Rows per chunk.
        device: Where the states are; the state of its random numbers is kept.
    """

    def __init__(self, head: Head, rows: int, device: torch.device) -> None:
        self.head, self.rows, self.device = head, rows, device
        self._autocast = (torch.get_autocast_dtype(device.type), torch.is_autocast_enabled(device.type))
        self._devices = [] if device.type == "cpu" else [device]
        self._random = torch.get_rng_state()
        self._on_device = [torch.get_device_module(device).get_rng_state(one) for one in self._devices]

    def chunks(self, states: Tensor, leaf: bool, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Per chunk its state (a leaf if ``leaf``), its logits with a graph, and its part of the others."""
        parts = zip(states.split(self.rows), *(one.split(self.rows) for one in others), strict=True)
        for state, *rest in parts:
            state = state.detach().requires_grad_(leaf)
            yield state, self.head(state), *rest

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Gradients on, and random numbers and autocast as they were when this was made."""
        dtype, enabled = self._autocast
        device_type = "cuda" if self.device.type == "cpu" else self.device.type  # "cpu" is no choice; none is forked
        with torch.random.fork_rng(self._devices, device_type=device_type), torch.enable_grad():
            torch.set_rng_state(self._random)
            for device, state in zip(self._devices, self._on_device, strict=True):
                torch.get_device_module(device).set_rng_state(state, device)
            with torch.autocast(self.device.type, dtype, enabled), keep_nothing():
                yield


def _forward(
    again: _Again, states: Tensor, targets: Tensor, differentiable: bool
) -> tuple[Tensor, Tensor, Tensor | None, list[Tensor]]:
    """Log-probabilities, logsumexps, their gradients if the head is frozen, and the leaves that the head trains."""
    found, logsumexps = [], []
    gradients: list[Tensor] = []
    leaves: list[Tensor] | None = None
    for state, logits, target in again.chunks(states, differentiable, targets):
        if leaves is None:
            leaves = [leaf for leaf in leaves_of(logits) if leaf is not state]
        value, logsumexp = _log_probs(logits.detach(), target)
        found.append(value)
        logsumexps.append(logsumexp)
        if differentiable and not leaves:
            by_logits = _by_logits(logits.detach(), logsumexp, target, torch.ones_like(value))
            gradients += torch.autograd.grad(logits, state, by_logits.to(logits.dtype))
        del logits
    return torch.cat(found), torch.cat(logsumexps), torch.cat(gradients) if gradients else None, leaves or []


def _log_probs(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the targets, 0 where ignored, and logsumexps, both ``[t]`` in fp32 or fp64."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    ignored = targets == IGNORE_INDEX
    logsumexp = logits.logsumexp(dim=-1)
    found = logits.gather(1, targets.masked_fill(ignored, 0)[:, None]).squeeze(1) - logsumexp
    return found.masked_fill(ignored, 0.0), logsumexp


def _by_logits(logits: Tensor, logsumexps: Tensor, targets: Tensor, upstream: Tensor) -> Tensor:
    """``upstream * (onehot(target) - softmax(z))``, the gradient by the logits; zeros where the target is ignored."""
    ignored = targets == IGNORE_INDEX
    scale = upstream.masked_fill(ignored, 0.0)[:, None]
    found = torch.sub(logits, logsumexps[:, None]).exp_().mul_(-scale)
    return found.scatter_add_(1, targets.masked_fill(ignored, 0)[:, None], scale)


class _Scaled(torch.autograd.Function):
    """Numbers whose gradients by their own states are known."""

    @staticmethod
    def forward(ctx: Any, found: Tensor, gradient: Tensor, states: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return found.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return None, None, (gradient * upstream[:, None]).to(gradient.dtype)


class _Remade(torch.autograd.Function):
    """Numbers whose logits are made again for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, again: _Again, found: Tensor, logsumexps: Tensor, targets: Tensor, states: Tensor, *leaves: Tensor
    ) -> Tensor:
        ctx.again = again
        ctx.save_for_backward(logsumexps, targets, states, *leaves)
        return found.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        logsumexps, targets, states, *leaves = ctx.saved_tensors
        wanted = [leaf for leaf, needed in zip(leaves, ctx.needs_input_grad[5:], strict=True) if needed]
        differentiable = ctx.needs_input_grad[4]
        by_states: list[Tensor] = []
        sums = [torch.zeros_like(leaf) for leaf in wanted]
        with ctx.again.replayed():
            parts = ctx.again.chunks(states, differentiable, logsumexps, targets, upstream)
            for state, logits, logsumexp, target, scale in parts:
                by_logits = _by_logits(logits.detach(), logsumexp, target, scale).to(logits.dtype)
                gradients = torch.autograd.grad(logits, [state] * differentiable + wanted, by_logits)
                by_states += gradients[:differentiable]
                for total, more in zip(sums, gradients[differentiable:], strict=True):
                    total += more
                del logits
        ordered = iter(sums)
        by_leaves = [next(ordered) if needed else None for needed in ctx.needs_input_grad[5:]]
        return None, None, None, None, torch.cat(by_states) if by_states else None, *by_leaves
