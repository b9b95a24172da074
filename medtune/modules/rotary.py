"""Rotary positions (RoPE, Su et al. 2021, Eq. 34) in few kernels: the plain rotation, forward and backward."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def rotate_pairs(x: Tensor, table: Tensor) -> Tensor:
    """Rotate neighbouring channels, as Llama's own code does.

    Args:
        x: [b, s, heads, d], in fp32 or fp64.
        table: cosines and sines [b or 1, s, 1, d / 2, 2] in the same type; gets no gradient.

    Returns:
        [b, s, heads, d].
    """
    return _RotatedPairs.apply(x, table)


class _RotatedPairs(torch.autograd.Function):
    """A rotation; its gradient is the rotation back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor) -> Tensor:
        ctx.save_for_backward(table)
        return _turned(x, torch.view_as_complex(table))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (table,) = ctx.saved_tensors
        return _turned(gradient, torch.view_as_complex(table).conj()), None


def _turned(x: Tensor, turn: Tensor) -> Tensor:
    out = x.new_empty(x.shape)
    torch.mul(_as_complex(x.contiguous()), turn, out=_as_complex(out))
    return out


def _as_complex(x: Tensor) -> Tensor:
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))
