"""A layer with an adapter, and a gated activation, as one autograd function each, against the plain forms in fp64."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchao.dtypes.nf4tensor import to_nf4
from torchtune.models.clip._text_encoder import QuickGELU

from medtune.modules.adapted_linear import adapted_linear, gated

ACTIVATIONS = {"silu": nn.SiLU(), "gelu": nn.GELU(), "tanh": nn.GELU(approximate="tanh"), "quick": QuickGELU()}
SCALE = 0.7


def problem(bias: bool = True, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    x, a, b = (torch.randn(shape, dtype=dtype, requires_grad=True) for shape in ((2, 5, 6), (3, 6), (4, 3)))
    weight = torch.randn(4, 6, dtype=dtype)
    return x, weight, torch.randn(4, dtype=dtype) if bias else None, a, b


def plain(x: Tensor, weight: Tensor, bias: Any, a: Tensor, b: Tensor, dropped: Any = None, activation: Any = None):
    """W f(x) + bias + s B A f(x)."""
    x = x if activation is None else activation(x)
    return F.linear(x, weight, bias) + SCALE * (x if dropped is None else dropped) @ a.T @ b.T


def gradients(out: Tensor, *inputs: Tensor) -> list[Tensor]:
    torch.manual_seed(1)
    return list(torch.autograd.grad(out, inputs, torch.randn_like(out)))


def same(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-12) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape and (one - other).abs().max() < tolerance


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("name", [None, *ACTIVATIONS])
def test_an_adapted_layer_is_the_equation_forward_and_backward(name: str | None, bias: bool) -> None:
    x, weight, shift, a, b = problem(bias)
    activation = None if name is None else ACTIVATIONS[name]
    found = adapted_linear(x, weight, shift, a, b, SCALE, activation=activation)
    expected = plain(x, weight, shift, a, b, activation=activation)
    same([found, *gradients(found, x, a, b)], [expected, *gradients(expected, x, a, b)])


def test_what_dropout_leaves_goes_to_the_adapter_alone() -> None:
    x, weight, shift, a, b = problem()
    keep = (torch.rand(x.shape) > 0.3).double()
    found = adapted_linear(x, weight, shift, a, b, SCALE, dropped=x * keep)
    expected = plain(x, weight, shift, a, b, dropped=x * keep)
    same([found, *gradients(found, x, a, b)], [expected, *gradients(expected, x, a, b)])


@pytest.mark.parametrize("name", [None, "gelu"])
def test_gradients_by_finite_differences(name: str | None) -> None:
    x, weight, shift, a, b = problem()
    activation = None if name is None else ACTIVATIONS[name]
    assert torch.autograd.gradcheck(
        lambda x, a, b: adapted_linear(x, weight, shift, a, b, SCALE, activation=activation), (x, a, b)
    )


@pytest.mark.parametrize("wanted", ["x", "a", "b"])
@pytest.mark.parametrize("name", [None, "silu"])
def test_one_input_alone_needs_a_gradient(wanted: str, name: str | None) -> None:
    """The first layer's input needs none, and a method may freeze adapters."""
    x, weight, shift, a, b = problem()
    inputs = {"x": x, "a": a, "b": b}
    for key, tensor in inputs.items():
        tensor.requires_grad_(key == wanted)
    activation = None if name is None else ACTIVATIONS[name]
    found = adapted_linear(x, weight, shift, a, b, SCALE, activation=activation)
    expected = plain(x, weight, shift, a, b, activation=activation)
    same(gradients(found, inputs[wanted]), gradients(expected, inputs[wanted]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_nf4_base(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, a, b = (torch.randn(shape, requires_grad=True) for shape in ((3, 7, 64), (4, 64), (256, 4)))
    weight = to_nf4(torch.randn(256, 64).to(dtype))
    cast = [tensor.detach().to(dtype).requires_grad_() for tensor in (x, a, b)]
    found = adapted_linear(cast[0], weight, None, *cast[1:], SCALE)
    exact = [tensor.detach().double().requires_grad_() for tensor in cast]
    expected = plain(exact[0], weight.get_original_weight().double(), None, *exact[1:])
    # measured: 2e-7 in fp32, 3e-3 in bf16, which has 8 bits
    limit = 2e-6 if dtype == torch.float32 else 1e-2
    for one, other in zip([found, *gradients(found, *cast)], [expected, *gradients(expected, *exact)], strict=True):
        assert (one.double() - other).norm() < limit * other.norm() or one.shape != found.shape
    assert found.dtype == dtype


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_gated_activation_is_the_equation_forward_and_backward(name: str) -> None:
    torch.manual_seed(0)
    gate, up = (torch.randn(3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    activation = ACTIVATIONS[name]
    found, expected = gated(activation, gate, up), activation(gate) * up
    same([found, *gradients(found, gate, up)], [expected, *gradients(expected, gate, up)])
    assert torch.autograd.gradcheck(lambda gate, up: gated(activation, gate, up), (gate, up))


def kept(run: Any, *known: Tensor) -> list[int]:
    """Elements of what autograd keeps of a call, apart from known tensors."""
    seen, sizes = {tensor.untyped_storage()._cdata for tensor in known}, []

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in seen:
            seen.add(tensor.untyped_storage()._cdata)
            sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = run()
    assert result.requires_grad
    return sizes


def test_the_narrow_factor_alone_is_kept_beside_the_input() -> None:
    x, weight, shift, a, b = problem()
    assert kept(lambda: adapted_linear(x, weight, shift, a, b, SCALE), x, weight, a, b) == [2 * 5 * 3]
    run = lambda: adapted_linear(x, weight, shift, a, b, SCALE, activation=nn.GELU())  # noqa: E731
    assert kept(run, x, weight, a, b) == [2 * 5 * 3]
    b.requires_grad_(False)
    assert kept(lambda: adapted_linear(x, weight, shift, a, b, SCALE), x, weight, a, b) == []
    gate, up = (torch.randn(3, 5, requires_grad=True) for _ in range(2))
    assert kept(lambda: gated(nn.SiLU(), gate, up), gate, up) == []
