"""Losses of logits that never stand in memory together: made, differentiated and dropped chunk by chunk."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

ChunkLoss = Callable[..., tuple[Tensor, Tensor]]
"""``(states [p, c, d], *per_token [c]) -> (loss, sums)``: a scalar to differentiate, and numbers [k] to add up."""


def sum_over_chunks(
    loss: ChunkLoss, states: Tensor, per_token: tuple[Tensor, ...], chunk_tokens: int
) -> tuple[Tensor, Tensor]:
    """Add a loss up over chunks of tokens.

    Each chunk's gradients are taken at once, in the forward pass, so that only one chunk's logits live and nothing is
    computed twice; the backward pass scales the gradients. A second derivative is not available, and neither is a
    second backward pass.

    Args:
        loss: Of one chunk; called with gradients on, and what it trains gets its gradients too.
        states: ``[p, n, d]``, p states of each of n tokens, one at least.
        per_token: Further tensors whose first dimension is n; no gradient reaches them.
        chunk_tokens: The most tokens per chunk (the chunks are of equal size); 0 takes all at once.

    Returns:
        The sum of the losses, which is differentiable, and the sums, which are not.
    """
    chunks = math.ceil(states.shape[1] / chunk_tokens) if chunk_tokens else 1
    with keep_nothing():
        total, sums, leaves, gradients = _forward(loss, states.detach(), per_token, chunks)
    if gradients:
        total = _Known.apply(total, gradients, states, *leaves)
    return total, sums


def keep_nothing() -> torch.autograd.graph.saved_tensors_hooks:
    """A context in which activation offloading neither moves nor counts what a graph saves: it is used at once."""
    return torch.autograd.graph.saved_tensors_hooks(_as_it_is, _as_it_is)


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def _forward(
    loss: ChunkLoss, states: Tensor, per_token: tuple[Tensor, ...], chunks: int
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    """Total, sums, the leaves that ``loss`` trains, the gradients of ``states`` and of those; none under no_grad."""
    total = torch.zeros((), dtype=torch.float64, device=states.device)
    sums = torch.zeros((), dtype=torch.float64, device=states.device)
    leaves: list[Tensor] = []
    gradients: list[Tensor] = []
    done = 0
    pieces = zip(states.tensor_split(chunks, dim=1), *(one.tensor_split(chunks) for one in per_token), strict=True)
    for piece, *others in pieces:
        state = piece.detach().requires_grad_()
        value, numbers = loss(state, *others)
        total, sums = total + value.detach(), sums + numbers.detach()
        if not value.requires_grad:
            continue
        if not gradients:
            leaves = [leaf for leaf in leaves_of(value) if leaf is not state]
            # Tensors of their own: what autograd returns may be one tensor for several leaves.
            gradients = [torch.empty_like(states), *(torch.zeros_like(leaf) for leaf in leaves)]
        found = torch.autograd.grad(value, [state, *leaves])
        gradients[0][:, done : done + state.shape[1]] = found[0]
        for gradient, more in zip(gradients[1:], found[1:], strict=True):
            gradient += more
        done += state.shape[1]
    return total, sums, leaves, gradients


def leaves_of(result: Tensor) -> list[Tensor]:
    """The tensors whose gradients a backward pass from ``result`` would accumulate, each once."""
    leaves: list[Tensor] = []
    seen: set[Any] = set()
    waiting: list[Any] = [result.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() == "torch::autograd::AccumulateGrad":
            leaves.append(node.variable)
        waiting.extend(following for following, _ in node.next_functions)
    return leaves


class _Known(torch.autograd.Function):
    """A number whose gradients are known already."""

    @staticmethod
    def forward(ctx: Any, total: Tensor, gradients: list[Tensor], *inputs: Tensor) -> Tensor:
        ctx.known = gradients
        return total.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.known:
            raise RuntimeError("sum_over_chunks: a second backward pass through one loss; compute it again")
        # Scaled in place and let go: the gradient of a trained head can be the largest tensor of a run.
        known, ctx.known = ctx.known, []
        return None, None, *(gradient.mul_(upstream) for gradient in known)
