"""Losses on logits that are never all in memory at once: computed, differentiated and freed chunk by chunk."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

ChunkLoss = Callable[..., tuple[Tensor, Tensor]]
"""``(states [p, c, d], *per_token [c]) -> (loss, sums)``: a scalar to differentiate, and numbers [k] to sum up."""


def sum_over_chunks(
    loss: ChunkLoss, states: Tensor, per_token: tuple[Tensor, ...], chunk_tokens: int
) -> tuple[Tensor, Tensor]:
    """Sum a loss over chunks of tokens.

    Each chunk's gradients are computed immediately, in the forward pass, so that only one chunk's logits are in memory
    and nothing is computed twice. The backward pass scales the gradients. A second derivative is not available, and
    neither is a second backward pass.

    Args:
        loss: The loss of one chunk; called with gradients enabled. The parameters that it uses get gradients too.
        states: ``[p, n, d]``, p states of each of n tokens; n is at least 1.
        per_token: More tensors whose first dimension is n; no gradient flows to them.
        chunk_tokens: Maximum number of tokens per chunk (the chunks have equal size); 0 takes all at once.

    Returns:
        The sum of the losses, which is differentiable, and the sums, which are not differentiable.
    """
    chunks = math.ceil(states.shape[1] / chunk_tokens) if chunk_tokens else 1
    with without_saved_tensor_hooks():
        total, sums, leaves, gradients = _forward(loss, states.detach(), per_token, chunks)
    if gradients:
        total = _Known.apply(total, gradients, states, *leaves)
    return total, sums


def without_saved_tensor_hooks() -> torch.autograd.graph.saved_tensors_hooks:
    """A context in which activation offloading ignores the tensors that a graph saves: they are used immediately."""
    return torch.autograd.graph.saved_tensors_hooks(_as_it_is, _as_it_is)


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def _forward(
    loss: ChunkLoss, states: Tensor, per_token: tuple[Tensor, ...], chunks: int
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    """Return total, sums, the leaves that ``loss`` trains, the gradients of ``states`` and of these leaves.

    There are no gradients under no_grad.
    """
    total = torch.zeros((), dtype=torch.float64, device=states.device)
    sums = torch.zeros((), dtype=torch.float64, device=states.device)
    leaves: list[Tensor] = []
    gradients: list[Tensor] = []
    done = 0
    pieces = zip(
        states.tensor_split(chunks, dim=1), *(tensor.tensor_split(chunks) for tensor in per_token), strict=True
    )
    for piece, *others in pieces:
        state = piece.detach().requires_grad_()
        value, numbers = loss(state, *others)
        total, sums = total + value.detach(), sums + numbers.detach()
        if not value.requires_grad:
            continue
        if not gradients:
            leaves = [leaf for leaf in leaves_of(value) if leaf is not state]
            # Copies, because autograd may return one tensor for several leaves.
            gradients = [torch.empty_like(states), *(torch.zeros_like(leaf) for leaf in leaves)]
        new = torch.autograd.grad(value, [state, *leaves])
        gradients[0][:, done : done + state.shape[1]] = new[0]
        for gradient, more in zip(gradients[1:], new[1:], strict=True):
            gradient += more
        done += state.shape[1]
    return total, sums, leaves, gradients


def leaves_of(result: Tensor) -> list[Tensor]:
    """Return the tensors whose gradients a backward pass from ``result`` would accumulate, each once."""
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
    """A number whose gradients are already computed."""

    @staticmethod
    def forward(ctx: Any, total: Tensor, gradients: list[Tensor], *inputs: Tensor) -> Tensor:
        ctx.known = gradients
        return total.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.known:
            raise RuntimeError("sum_over_chunks: a second backward pass through one loss; compute it again")
        # Scaled in place and freed: the gradient of a trained head can be the largest tensor of a run.
        known, ctx.known = ctx.known, []
        return None, None, *(gradient.mul_(upstream) for gradient in known)
