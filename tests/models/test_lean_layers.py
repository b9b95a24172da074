"""medtune's layers against torchtune's own code, in whole models of every family and one by one."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchtune.modules import FeedForward, RotaryPositionalEmbeddings
from torchtune.modules.peft import LoRALinear

from medtune.config import Component, instantiate
from medtune.models.common.lean_layers import (
    AdaptedLinear,
    LeanFeedForward,
    PairsRotary,
    ScaledPairsRotary,
    use_lean_layers,
)
from tests.families import FAMILIES

LEAN = (AdaptedLinear, LeanFeedForward, PairsRotary, ScaledPairsRotary)


@contextmanager
def torchtunes_code() -> Iterator[None]:
    """Let every layer run the code of torchtune's class that it derives from."""
    own = {layer: layer.forward for layer in LEAN}
    try:
        for layer in LEAN:
            layer.forward = layer.__mro__[1].forward  # type: ignore[method-assign]
        yield
    finally:
        for layer, forward in own.items():
            layer.forward = forward  # type: ignore[method-assign]


def family(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = instantiate(Component(**FAMILIES[name].adapted))
    for key, parameter in model.named_parameters():
        if ".lora_b." in key:
            nn.init.normal_(parameter, std=0.1)
    return model


def states(model: Any) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    hidden = model.hidden(torch.arange(1, 25).view(3, 8))
    (hidden * torch.linspace(-1, 1, hidden.numel()).view_as(hidden).sin()).sum().backward()
    return hidden.detach(), {key: p.grad for key, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_computes_what_torchtunes_layers_compute(name: str) -> None:
    model = family(name)
    kinds = [type(module) for module in model.modules()]
    assert kinds.count(AdaptedLinear) == sum(issubclass(kind, LoRALinear) for kind in kinds) > 0
    assert kinds.count(LeanFeedForward) == sum(issubclass(kind, FeedForward) for kind in kinds) > 0
    found, by_found = states(model)
    with torchtunes_code():
        expected, by_expected = states(model)
    assert by_found.keys() == by_expected.keys() and by_found
    # measured in fp32: 2e-6 of states below 3, and 2e-6 of the largest gradient of a tensor
    assert (found - expected).abs().max() < 1e-5
    worst = max(float((by_found[key] - g).abs().max() / g.abs().max()) for key, g in by_expected.items())
    assert worst < 1e-5


def layer(dropout: float = 0.0, dtype: torch.dtype = torch.float64, **options: Any) -> tuple[LoRALinear, Tensor]:
    torch.manual_seed(0)
    made = LoRALinear(6, 4, rank=2, alpha=3.0, dropout=dropout, use_bias=True, **options).to(dtype)
    for parameter in (made.weight, made.bias):
        parameter.requires_grad_(False)
    nn.init.normal_(made.lora_b.weight)
    use_lean_layers(made)
    assert type(made) is AdaptedLinear
    return made, torch.randn(3, 5, 6, dtype=dtype, requires_grad=True)


def outcome(made: nn.Module, x: Tensor, run: Any = None) -> list[Tensor]:
    """Output and gradients, with the same random numbers each time."""
    torch.manual_seed(1)
    inputs = [x, *(p for p in made.parameters() if p.requires_grad)]
    out = made(x) if run is None else run(made, x)
    return [out, *torch.autograd.grad(out.float().square().sum(), inputs)]


def equal(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-12) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype and (one - other).abs().max() <= tolerance


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_an_adapted_layer_with_dropout(dropout: float, training: bool) -> None:
    made, x = layer(dropout)
    made.train(training)
    found = outcome(made, x)
    with torchtunes_code():
        equal(found, outcome(made, x))


def test_an_adapted_layer_whose_base_is_trained_too() -> None:
    made, x = layer()
    made.weight.requires_grad_()
    found = outcome(made, x)
    with torchtunes_code():
        equal(found, outcome(made, x), 0.0)


@pytest.mark.parametrize("off", [True, False])
def test_without_gradients_a_layer_rounds_as_torchtunes(off: bool) -> None:
    made, x = layer(dtype=torch.bfloat16)
    made.disabled = off
    with torch.no_grad():
        found = made(x)
        with torchtunes_code():
            assert torch.equal(found, made(x))


def test_an_adapted_layer_under_autocast() -> None:
    made, x = layer(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = outcome(made, x)
        with torchtunes_code():
            equal(found, outcome(made, x), 0.0)
    assert found[0].dtype == torch.bfloat16


def network(gate: bool, dropout: float = 0.0, activation: nn.Module | None = None) -> tuple[FeedForward, Tensor]:
    torch.manual_seed(0)
    maps = {"gate_proj": LoRALinear(6, 8, 2, 3.0, dropout), "down_proj": LoRALinear(8, 6, 2, 3.0, dropout)}
    more = {"up_proj": LoRALinear(6, 8, 2, 3.0, dropout)} if gate else {}
    made = FeedForward(**maps, **more, activation=activation or nn.GELU()).double()
    for name, parameter in made.named_parameters():
        parameter.requires_grad_("lora" in name)
        nn.init.normal_(parameter)
    use_lean_layers(made)
    return made, torch.randn(3, 5, 6, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("gate", [True, False], ids=["gated", "plain"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("how", ["plain", "checkpointed", "compiled"])
def test_a_feed_forward_network(gate: bool, dropout: float, how: str) -> None:
    made, x = network(gate, dropout)
    run = {
        "plain": None,
        "checkpointed": lambda made, x: checkpoint(made, x, use_reentrant=False),
        "compiled": lambda made, x: torch.compile(made, backend="eager")(x),
    }[how]
    found = outcome(made, x, run)
    with torchtunes_code():
        equal(found, outcome(made, x), 1e-8)


def test_an_activation_that_may_return_its_input_is_left_to_torchtune() -> None:
    made, x = network(gate=True, activation=nn.Identity())
    found = outcome(made, x)
    with torchtunes_code():
        equal(found, outcome(made, x), 1e-8)


@pytest.mark.parametrize("positions", [None, "rows", "one row"])
def test_positions_of_every_form_that_torchtune_takes(positions: str | None) -> None:
    places = {None: None, "rows": torch.randint(0, 50, (2, 5)), "one row": torch.arange(3, 8)}[positions]
    for kind in (RotaryPositionalEmbeddings, ScaledPairsRotary.__mro__[1]):
        plain, lean = kind(6, 50).bfloat16(), kind(6, 50).bfloat16()  # their tables too, as a model's
        use_lean_layers(lean)
        assert type(lean) is not kind
        x = torch.randn(2, 5, 3, 6, dtype=torch.bfloat16, requires_grad=True)
        found, expected = lean(x, input_pos=places), plain(x, input_pos=places)
        assert found.dtype == torch.bfloat16
        assert (found.float() - expected.float()).abs().max() < 0.04  # bf16 has 8 bits; values are below 5
        with torch.no_grad():
            assert torch.equal(lean(x, input_pos=places), plain(x, input_pos=places))
