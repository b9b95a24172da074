"""The benchmark of a VITask step, tiny: both sides give the same losses and gradients, and ours does less."""

import argparse
from typing import Any

import pytest
import torch

from tests.benchmark.scripts import script

bench = script("vitask_step")
TINY = ["--embed-dim", "16", "--image-size", "64", "--decoder-layers", "2", "--batch-size", "2", "--rounds", "2"]
CPU = torch.device("cpu")


def options(*more: str) -> argparse.Namespace:
    return bench.parse([*TINY, "--tsm-layers", "1", "--tsm-dim", "16", "--tsm-image-size", "16", *more])


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return bench.measured(options())


def test_losses_and_gradients_are_those_of_the_plain_form(found: dict[str, Any]) -> None:
    assert found["max_loss_difference"] < 1e-6 < found["losses"]["plain"]
    assert found["max_gradient_difference"] < 1e-5 < found["largest_gradient"]
    built = bench.build(options(), CPU)
    assert found["parameters_compared"] == len(built.trained)
    assert sum(name.startswith("objective.connector.") for name in built.trained) == 6


def test_less_is_computed(found: dict[str, Any]) -> None:
    operations = found["operations"]
    assert operations["cached"] < operations["medtune"] < 0.6 * operations["plain"]
    assert found["memory_ratio"] < 1.0


@pytest.mark.parametrize("model", ["llava", "llama"])
def test_the_other_kinds_of_models(model: str) -> None:
    built = bench.build(options("--model", model), CPU)
    steps = {"medtune": lambda: bench.our_loss(built), "plain": lambda: bench.plain_loss(built)}
    found = bench.differences(built, {name: bench.step(built, loss) for name, loss in steps.items()})
    assert found["max_loss_difference"] < 1e-6 and found["max_gradient_difference"] < 1e-5
