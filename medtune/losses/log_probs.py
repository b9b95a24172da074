"""Log-probabilities of tokens, for losses that are not sums over tokens; no tensor holds the logits of all tokens.

:mod:`medtune.losses.chunks` takes each chunk's gradient in the forward pass, which needs a loss that is a sum over
tokens. A loss of a sequence, such as ``-log sigmoid(beta * (sum_t log p_t - sum_t log p'_t))`` of DPO (Rafailov et al.
2023, Eq. 7), is not such a sum: the factor of the gradient of each ``log p_t`` is known only after all tokens of all
sequences are processed. The functions here return the log-probabilities, and any loss can be computed from them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from medtune.losses.chunks import leaves_of, without_saved_tensor_hooks
from medtune.losses.cross_entropy import IGNORE_INDEX, shifted_targets

Head = Callable[[Tensor], Tensor]


def token_log_probs(hidden: Tensor, labels: Tensor, head: Head, chunk_tokens: int = 512) -> Tensor:
    """Return ``log softmax(head(h_t))[label_{t+1}]`` at each position, differentiable.

    Args:
        hidden: ``[b, s, d]`` decoder states after the last norm.
        labels: ``[b, s]`` unshifted ids, ``IGNORE_INDEX`` where not supervised.
        head: As for :func:`target_log_probs`.
        chunk_tokens: As there.

    Returns:
        ``[b, s]`` in nats, fp32 (fp64 for fp64 logits). The number at position t belongs to the label at t + 1
        (:func:`medtune.losses.cross_entropy.shifted_targets`) and is 0 if there is no label.
    """
    targets = shifted_targets(labels).flatten()
    rows = (targets != IGNORE_INDEX).nonzero().squeeze(1)
    if len(rows) == 0:
        rows = rows.new_zeros(1)  # a token whose target is ignored: every process still runs the same backward pass
    values = target_log_probs(hidden.flatten(0, 1).index_select(0, rows), targets[rows], head, chunk_tokens)
    return values.new_zeros(len(targets)).index_copy(0, rows, values).view(labels.shape)


def sequence_log_probs(hidden: Tensor, labels: Tensor, head: Head, chunk_tokens: int = 512) -> tuple[Tensor, Tensor]:
    """Return the sum of :func:`token_log_probs` over each sequence.

    Args:
        hidden: ``[b, s, d]``.
        labels: ``[b, s]`` unshifted.
        head: As for :func:`target_log_probs`.
        chunk_tokens: As there.

    Returns:
        The sums ``[b]`` in nats, accumulated in fp64, and the number of tokens in each sum, ``[b]``. The sum of a
        sequence without a supervised token is 0.
    """
    sums = token_log_probs(hidden, labels, head, chunk_tokens).sum(dim=1, dtype=torch.float64)
    return sums, (shifted_targets(labels) != IGNORE_INDEX).sum(dim=1)


def target_log_probs(states: Tensor, targets: Tensor, head: Head, chunk_tokens: int = 512) -> Tensor:
    """Return ``z[target] - logsumexp(z)``, ``z = head(state)``, per row, differentiable; logits are computed in chunks.

    There are two exact forms. The choice depends on the trained tensors behind the logits of the first chunk:

    - The head has no trained tensor: the forward pass computes the gradient of each number with respect to its own
      state, and the backward pass scales it. The head is applied to each row once.
    - The head has a trained tensor (the output weight, tied embeddings, an adapter): the forward pass keeps the
      logsumexps. The backward pass computes the logits again, with the same random numbers (dropout) and under the same
      autocast, and computes the gradients of states and of every trained tensor. The head is applied to each row twice;
      in return no gradient of the size of the head is stored per sequence.

    A second derivative is not available. Activation offloading ignores the tensors that are kept.

    Args:
        states: ``[n, d]``, at least one row.
        targets: ``[n]`` ids, ``IGNORE_INDEX`` where a row has no target.
        head: Maps ``[t, d]`` to logits ``[t, V]``, each row independently. Its trained tensors must be leaves:
            parameters, not results of an earlier computation.
        chunk_tokens: Number of rows whose logits are in memory at once; 0 takes all.

    Returns:
        ``[n]`` in nats, fp32 (fp64 for fp64 logits), 0 where the target is ignored.
    """
    pieces = len(states) if chunk_tokens == 0 else chunk_tokens
    if not torch.is_grad_enabled():
        parts = zip(states.split(pieces), targets.split(pieces), strict=True)
        return torch.cat([_log_probs(head(state), target)[0] for state, target in parts])
    chunked = _ChunkedHead(head, pieces, states.device)
    with without_saved_tensor_hooks():
        values, logsumexps, gradient, leaves = _forward(chunked, states.detach(), targets, states.requires_grad)
        if leaves:
            return _Recomputed.apply(chunked, values, logsumexps, targets, states, *leaves)
        return values if gradient is None else _Precomputed.apply(values, gradient, states)


class _ChunkedHead:
    """The head, applied to chunk after chunk; a second pass reproduces the first one.

    Args:
        head: The head.
        rows: Rows per chunk.
        device: Device of the states; the state of its random number generator is kept.
    """

    def __init__(self, head: Head, rows: int, device: torch.device) -> None:
        self.head, self.rows = head, rows
        self.kind = "cpu" if device.type == "meta" else device.type  # the meta device has no autocast and no generator
        self._autocast = (torch.get_autocast_dtype(self.kind), torch.is_autocast_enabled(self.kind))
        self._devices = [] if self.kind == "cpu" else [device]
        self._random = torch.get_rng_state()
        self._on_device = [torch.get_device_module(device).get_rng_state(device_id) for device_id in self._devices]

    def chunks(self, states: Tensor, leaf: bool, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Yield for each chunk its state (a leaf if ``leaf``), its logits with a graph, and its part of the others."""
        parts = zip(states.split(self.rows), *(tensor.split(self.rows) for tensor in others), strict=True)
        for state, *rest in parts:
            state = state.detach().requires_grad_(leaf)
            yield state, self.head(state), *rest

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """A context with gradients enabled, and with the random numbers and autocast of the time of construction."""
        dtype, enabled = self._autocast
        device_type = (
            "cuda" if self.kind == "cpu" else self.kind
        )  # "cpu" is not accepted here; no device is forked then
        with torch.random.fork_rng(self._devices, device_type=device_type), torch.enable_grad():
            torch.set_rng_state(self._random)
            for device, state in zip(self._devices, self._on_device, strict=True):
                torch.get_device_module(device).set_rng_state(state, device)
            with torch.autocast(self.kind, dtype, enabled), without_saved_tensor_hooks():
                yield


def _forward(
    chunked: _ChunkedHead, states: Tensor, targets: Tensor, differentiable: bool
) -> tuple[Tensor, Tensor, Tensor | None, list[Tensor]]:
    """Return log-probabilities, logsumexps, gradients (only if the head is frozen), and the head's trained leaves."""
    values, logsumexps = [], []
    gradients: list[Tensor] = []
    leaves: list[Tensor] | None = None
    for state, logits, target in chunked.chunks(states, differentiable, targets):
        if leaves is None:
            leaves = [leaf for leaf in leaves_of(logits) if leaf is not state]
        value, logsumexp = _log_probs(logits.detach(), target)
        values.append(value)
        logsumexps.append(logsumexp)
        if differentiable and not leaves:
            by_logits = _by_logits(logits.detach(), logsumexp, target, torch.ones_like(value))
            gradients += torch.autograd.grad(logits, state, by_logits.to(logits.dtype))
        del logits
    return torch.cat(values), torch.cat(logsumexps), torch.cat(gradients) if gradients else None, leaves or []


def _log_probs(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return log-probabilities of the targets, 0 where ignored, and logsumexps, both ``[t]`` in fp32 or fp64."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    ignored = targets == IGNORE_INDEX
    logsumexp = logits.logsumexp(dim=-1)
    values = logits.gather(1, targets.masked_fill(ignored, 0)[:, None]).squeeze(1) - logsumexp
    return values.masked_fill(ignored, 0.0), logsumexp


def _by_logits(logits: Tensor, logsumexps: Tensor, targets: Tensor, upstream: Tensor) -> Tensor:
    """Return ``upstream * (onehot(target) - softmax(z))``, the logits' gradient; 0 where the target is ignored."""
    ignored = targets == IGNORE_INDEX
    scale = upstream.masked_fill(ignored, 0.0)[:, None]
    gradient = torch.sub(logits, logsumexps[:, None]).exp_().mul_(-scale)
    return gradient.scatter_add_(1, targets.masked_fill(ignored, 0)[:, None], scale)


class _Precomputed(torch.autograd.Function):
    """Numbers whose gradients with respect to their own states are already computed."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, gradient: Tensor, states: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return values.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return None, None, (gradient * upstream[:, None]).to(gradient.dtype)


class _Recomputed(torch.autograd.Function):
    """Numbers whose logits are computed again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        chunked: _ChunkedHead,
        values: Tensor,
        logsumexps: Tensor,
        targets: Tensor,
        states: Tensor,
        *leaves: Tensor,
    ) -> Tensor:
        ctx.chunked = chunked
        ctx.save_for_backward(logsumexps, targets, states, *leaves)
        return values.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        logsumexps, targets, states, *leaves = ctx.saved_tensors
        wanted = [leaf for leaf, needed in zip(leaves, ctx.needs_input_grad[5:], strict=True) if needed]
        differentiable = ctx.needs_input_grad[4]
        by_states: list[Tensor] = []
        sums = [torch.zeros_like(leaf) for leaf in wanted]
        with ctx.chunked.replayed():
            parts = ctx.chunked.chunks(states, differentiable, logsumexps, targets, upstream)
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
