"""Rotations in few kernels against the plain ones, forward and backward in fp64."""

import pytest
import torch
from torch import Tensor

from medtune.modules.rotary import rotate_pairs


def problem(rows: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(2, 3, 4, 6, dtype=torch.float64, requires_grad=True), torch.randn(rows, 3, 1, 3).double()


def plain_pairs(x: Tensor, angle: Tensor) -> Tensor:
    even, odd = x[..., 0::2], x[..., 1::2]
    turned = (even * angle.cos() - odd * angle.sin(), odd * angle.cos() + even * angle.sin())
    return torch.stack(turned, dim=-1).flatten(-2)


def pairs(x: Tensor, angle: Tensor) -> Tensor:
    return rotate_pairs(x, torch.stack([angle.cos(), angle.sin()], dim=-1))


@pytest.mark.parametrize(("fast", "plain"), [(pairs, plain_pairs)], ids=["pairs"])
@pytest.mark.parametrize("rows", [1, 2], ids=["one table", "a table for each row"])
def test_a_rotation_is_the_plain_one_forward_and_backward(fast, plain, rows: int) -> None:
    x, angle = problem(rows)
    found, expected = fast(x, angle), plain(x, angle)
    assert (found - expected).abs().max() < 1e-14
    # gradients as attention gives them (transposed), and as a sum gives them (one number for all places)
    for upstream in (torch.randn(2, 4, 3, 6).double().transpose(1, 2), torch.ones(1).double().expand(2, 3, 4, 6)):
        (one,), (other,) = (torch.autograd.grad(out, x, upstream, retain_graph=True) for out in (found, expected))
        assert (one - other).abs().max() < 1e-14
    assert torch.autograd.gradcheck(lambda x: fast(x, angle), (x,))


@pytest.mark.parametrize("fast", [pairs])
def test_heads_that_are_not_contiguous(fast) -> None:
    x, angle = problem(1)
    moved = x.detach().transpose(1, 2).contiguous().transpose(1, 2)
    assert not moved.is_contiguous() and torch.equal(fast(moved, angle), fast(x.detach(), angle))
