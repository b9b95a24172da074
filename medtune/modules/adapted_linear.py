"""A frozen linear layer with a low-rank adapter, as one autograd function.

Written plainly, ``W x + s B A x`` (LoRA, Hu et al. 2021, Eq. 3) makes three tensors of the output's size in the forward
pass and one more in the backward pass. Here the adapter is added to ``W x`` within its own matrix product, and its
gradient of ``x`` to ``W^T g`` in the same way. Only the factor between A and B, which is as narrow as the rank, is
scaled. Values and gradients equal the plain form's up to rounding.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

Activation = Callable[[Tensor], Tensor]


def adapted_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    scale: float,
    *,
    dropped: Tensor | None = None,
    activation: Activation | None = None,
) -> Tensor:
    """``W f(x) + bias + scale B A f(x)``, where W and the bias are frozen.

    Args:
        x: [..., in].
        weight: W [out, in], dense or NF4; gets no gradient.
        bias: [out], or None; gets no gradient.
        a: A [r, in].
        b: B [out, r].
        scale: alpha / r.
        dropped: what A reads in place of ``x``, [..., in]: ``x`` after dropout. None is ``x``.
        activation: f, applied to each element; it is computed again in the backward pass, so that only ``x`` is kept.
            None is the identity. Not together with ``dropped``.

    Returns:
        [..., out].
    """
    return _AdaptedLinear.apply(x, dropped, weight, bias, a, b, scale, activation)


class _AdaptedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dropped: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scale: float,
        activation: Activation | None,
    ) -> Tensor:
        of_x, *_, of_a, of_b = ctx.needs_input_grad[:6]
        value = x if activation is None else activation(x)
        out = F.linear(value, weight.to(value.dtype), bias)
        low = _rows(value if dropped is None else dropped).mm(a.t()).mul_(scale)
        out.view(-1, out.shape[-1]).addmm_(low, b.t())
        source = x if dropped is None else dropped
        ctx.save_for_backward(
            source if of_a or (of_x and activation is not None) else None,
            weight if of_x else None,
            a,
            b,
            low if of_b else None,
        )
        ctx.scale, ctx.activation, ctx.apart = scale, activation, dropped is not None
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        source, weight, a, b, low = ctx.saved_tensors
        of_x, of_dropped, *_, of_a, of_b = ctx.needs_input_grad[:6]
        g = _rows(gradient)
        by_x = by_dropped = by_a = by_b = None
        if of_b:
            by_b = low.t().mm(g).t()  # r rows: several times as fast as r columns
        narrow = g.mm(b).mul_(ctx.scale)
        if of_x:
            by_x = g.mm(weight.to(g.dtype))
            if not ctx.apart:
                by_x.addmm_(narrow, a)
            by_x = by_x.view(*gradient.shape[:-1], -1)
        if ctx.activation is not None and (of_x or of_a):
            source, by_x = _again(ctx.activation, source, by_x)
        if of_a:
            by_a = narrow.t().mm(_rows(source))
        if of_dropped:
            by_dropped = narrow.mm(a).view(*gradient.shape[:-1], -1)
        return by_x, by_dropped, None, None, by_a, by_b, None, None


def gated(activation: Activation, gate: Tensor, up: Tensor) -> Tensor:
    """``f(gate) * up`` (GLU variants, Shazeer 2020, Eq. 5 and 6), with ``f(gate)`` computed again in the backward pass.

    Args:
        activation: f, applied to each element.
        gate: [..., n].
        up: [..., n].
    """
    return _Gated.apply(activation, gate, up)


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, activation: Activation, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.activation = activation
        return activation(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        gate, up = ctx.saved_tensors
        _, of_gate, of_up = ctx.needs_input_grad
        value, by_gate = _again(ctx.activation, gate, gradient * up if of_gate else None)
        return None, by_gate, value.mul_(gradient) if of_up else None


def _again(activation: Activation, x: Tensor, gradient: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """``f(x)``, computed again, and from the gradient of ``f(x)`` that of ``x``."""
    if gradient is None:
        return activation(x), None
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = activation(x)
        return value.detach(), torch.autograd.grad(value, x, gradient)[0]


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])
