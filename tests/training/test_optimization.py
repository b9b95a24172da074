"""Groups with their own rates, clipping over everything, optimizers that resume to the bit."""

from pathlib import Path
from typing import Any

import pytest
import torch

from medtune.config import Component, instantiate
from medtune.errors import ConfigError
from medtune.objectives.base import Stage
from medtune.objectives.instfree import InstFree
from medtune.training import optimization
from medtune.training.config import TrainConfig
from medtune.training.parts import TrainedParts
from medtune.training.trainer import Trainer
from tests.runs import TINY, die_at, largest_difference, launch, metrics, tiny, weights

ALL = ["vision", "projection", "fusion", "decoder", "proxy"]
RATES = {"vision": 1e-3, "fusion": 2e-3, "decoder": 3e-3, "proxy": 4e-3}


def parts_of(config: TrainConfig) -> TrainedParts:
    model, objective = instantiate(config.model), InstFree()
    objective.bind(model, instantiate(config.transform), 0)
    return TrainedParts(model, objective, {**model.parts(), **objective.parts()})


@pytest.fixture
def parts(tmp_path: Path) -> TrainedParts:
    found = parts_of(tiny(tmp_path))
    found.train_only(ALL)
    for parameter in found.named().values():
        parameter.grad = torch.randn_like(parameter)
    return found


def test_each_part_moves_at_its_own_rate(parts: TrainedParts) -> None:
    component = Component(_component_="torch.optim.SGD", lr=5e-3)
    optimizer = optimization.make_optimizer(component, parts, ALL, RATES)
    optimization.set_rates(optimizer, 0.5)
    before = {name: p.detach().clone() for name, p in parts.named().items()}
    optimizer.step()
    for part in ALL:
        for name, parameter in parts.select([part]).items():
            rate = 0.5 * RATES.get(part, 5e-3)
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.detach(), before[name] - rate * parameter.grad, rtol=0, atol=1e-7)


def test_the_rates_of_a_run_are_logged_by_part(tmp_path: Path) -> None:
    rates = {**RATES, "projection": 6e-3}
    trainable = ["vision", "projection", "fusion", "decoder"]
    schedule = {"kind": "linear", "warmup_steps": 0}
    config = tiny(tmp_path, learning_rates=rates, trainable=trainable, schedule=schedule)
    assert launch(config) == [0]
    lines = [line for line in metrics(tmp_path) if line["stage"] == "tune"]
    for step, line in enumerate(lines):
        found = {part: line[f"lr/{part}"] for part in ALL}
        assert found == pytest.approx({part: rate * (1 - step / 8) for part, rate in rates.items()})
    assert metrics(tmp_path)[0]["lr/proxy"] == 0.02, "the objective's rate for its warm-up wins"


def test_clipping_is_torchs_over_the_model_and_the_proxy(parts: TrainedParts) -> None:
    parameters = list(parts.select(ALL).values())
    proxy = dict(parts.objective.named_parameters())["proxy.weight"]
    assert proxy.grad is not None and any(parameter is proxy for parameter in parameters)
    proxy.grad.mul_(100.0)
    gradients = [parameter.grad.clone() for parameter in parameters if parameter.grad is not None]
    norm = float(optimization.gradient_norm(parameters))
    optimization.clip_gradients(parameters, norm, 0.7)
    clipped = [parameter.grad for parameter in parameters]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    assert norm == pytest.approx(float(torch.nn.utils.clip_grad_norm_(parameters, 0.7)), rel=1e-6)
    for ours, parameter in zip(clipped, parameters, strict=True):
        torch.testing.assert_close(ours, parameter.grad, rtol=1e-6, atol=1e-9)


def test_clipping_of_tiny_gradients_is_torchs_too() -> None:
    """Where the norm is of the size of the 1e-6 in the denominator."""
    ours, theirs = (torch.nn.Parameter(torch.zeros(2, dtype=torch.float64)) for _ in range(2))
    ours.grad, theirs.grad = (torch.tensor([3e-6, 4e-6], dtype=torch.float64) for _ in range(2))
    optimization.clip_gradients([ours], float(optimization.gradient_norm([ours])), 1e-6)
    torch.nn.utils.clip_grad_norm_([theirs], 1e-6)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=0)
    torch.testing.assert_close(ours.grad, torch.tensor([0.5e-6, 4e-6 / 6], dtype=torch.float64), rtol=1e-6, atol=0)


def test_a_small_gradient_is_left_alone(parts: TrainedParts) -> None:
    parameters = list(parts.select(["vision"]).values())
    before = [parameter.grad.clone() for parameter in parameters if parameter.grad is not None]
    optimization.clip_gradients(parameters, 0.5, 0.7)
    assert all(torch.equal(a, p.grad) for a, p in zip(before, parameters, strict=True) if p.grad is not None)


OPTIMIZERS: dict[str, dict[str, Any]] = {
    "SGD": {"_component_": "torch.optim.SGD", "lr": 0.05},
    "momentum": {"_component_": "torch.optim.SGD", "lr": 0.05, "momentum": 0.9, "nesterov": True},
    "Adafactor": {"_component_": "torch.optim.Adafactor", "lr": 1e-3},
    "NAdam": {"_component_": "torch.optim.NAdam", "lr": 1e-3},
    "Rprop": {"_component_": "torch.optim.Rprop", "lr": 1e-3},
    # On a CPU it says that it does not page, and goes on.
    "paged 8-bit AdamW": {"_component_": "bitsandbytes.optim.PagedAdamW8bit", "lr": 1e-3, "weight_decay": 0.1},
    "amsgrad": {"_component_": "torch.optim.AdamW", "lr": 1e-3, "amsgrad": True},
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_resume_to_the_bit(name: str, tmp_path: Path) -> None:
    # bitsandbytes keeps state in 8 bits for parameters of 4096 values or more.
    width = {"embed_dim": 64} if "8-bit" in name else {}
    options = {"optimizer": OPTIMIZERS[name], "save_every_steps": 2, "max_steps": 5, "model": width or TINY["model"]}
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    assert launch(tiny(straight, **options)) == [0]
    assert launch(tiny(broken, **options), harm=die_at(7)) == [9]
    assert launch(tiny(broken, **options)) == [0]
    assert metrics(broken) == metrics(straight)
    assert largest_difference(weights(broken), weights(straight)) == 0.0


def test_adamw_resumes_to_the_bit_in_bf16_and_the_proxy_stays_fp32(tmp_path: Path) -> None:
    options = {"save_every_steps": 2, "max_steps": 5, "dtype": "bf16"}
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    assert launch(tiny(straight, **options)) == [0]
    assert launch(tiny(broken, **options), harm=die_at(7)) == [9]
    assert launch(tiny(broken, **options)) == [0]
    assert metrics(broken) == metrics(straight)
    found = weights(straight)
    assert largest_difference(weights(broken), found) == 0.0
    types = {name: value.dtype for name, value in found.items()}
    assert types["objective.proxy.weight"] == types["objective.average"] == torch.float32
    assert {kind for name, kind in types.items() if not name.startswith("objective.")} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("component", "sentence"),
    [
        ({"_component_": "torch.optim.LBFGS", "lr": 1.0}, "LBFGS"),
        ({"_component_": "torch.optim.AdamW"}, "give lr, or learning_rates.vision"),
    ],
)
def test_what_cannot_step_is_refused(component: dict[str, Any], sentence: str, parts: TrainedParts) -> None:
    with pytest.raises(ConfigError, match=sentence):
        optimization.make_optimizer(Component(component), parts, ["vision", "fusion"], {})


def test_an_optimizer_whose_state_cannot_be_saved_is_refused(parts: TrainedParts) -> None:
    component = Component(_component_="torchao.optim.AdamW8bit", lr=1e-3)
    with pytest.raises(ConfigError, match="optimizer: torchao.optim.AdamW8bit keeps its state in tensors that"):
        optimization.make_optimizer(component, parts, ["vision", "proxy"], RATES)


def test_the_paged_eight_bit_optimizer_is_built(parts: TrainedParts) -> None:
    component = Component(_component_="bitsandbytes.optim.PagedAdamW8bit", lr=1e-3)
    optimizer = optimization.make_optimizer(component, parts, ["vision", "proxy"], RATES)
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 4e-3]


STAGES = [Stage("warmup", ("proxy",)), Stage("tune", ("vision", "fusion"))]


def test_a_rate_that_nothing_would_use_is_refused(parts: TrainedParts) -> None:
    optimization.check_rates({"proxy": 1.0, "vision": 1.0}, STAGES, parts, {"proxy": ["proxy.weight"]})
    with pytest.raises(ConfigError, match=r"learning_rates\.decoder: this run trains fusion, proxy, vision"):
        optimization.check_rates({"decoder": 1.0}, STAGES, parts, {"proxy": ["proxy.weight"]})
    # FT is a mode of InstFree, chosen by one override; its configs have a rate for the proxy.
    optimization.check_rates({"proxy": 1.0}, STAGES[1:], parts, InstFree(mode="text").parts())


def test_gradients_become_the_mean_over_supervised_tokens(tmp_path: Path) -> None:
    """The update of SGD is the rate times the gradient of the mean loss."""
    config = tiny(tmp_path, optimizer={"_component_": "torch.optim.SGD", "lr": 0.1}, objective={"mode": "text"})
    config.clip_grad_norm, config.max_steps, config.schedule.warmup_steps = None, 1, 0
    trainer = Trainer(config)
    trainer.setup()
    before = {name: p.detach().clone() for name, p in trainer.trained.items()}
    batches = next(trainer.feed.epoch(0))
    output = trainer.model.compute(trainer.objective, batches[0])
    gradients = torch.autograd.grad(output.loss_sum / output.weight, list(trainer.trained.values()))
    trainer._optimizer_step(batches)
    for (name, parameter), gradient in zip(trainer.trained.items(), gradients, strict=True):
        torch.testing.assert_close(parameter.detach(), before[name] - 0.1 * gradient, rtol=0, atol=1e-6)


class OfTheLoss(torch.optim.SGD):
    """Computes the loss as often as it likes, as LBFGS does, and takes groups."""

    def step(self, closure: Any) -> None:  # type: ignore[override]
        closure()


def test_an_optimizer_that_evaluates_the_loss_itself_is_refused(parts: TrainedParts) -> None:
    component = Component({"_component_": f"{__name__}.OfTheLoss", "lr": 1.0})
    with pytest.raises(ConfigError, match="OfTheLoss evaluates the loss itself"):
        optimization.make_optimizer(component, parts, ["vision"], {})


def test_gradients_of_two_processes_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """FSDP has averaged the model's; the method's own are summed here, also where this process has none."""
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda gradient: gradient.add_(1.0))
    trained = {name: torch.nn.Parameter(torch.zeros(2)) for name in ("proxy", "late", "weight", "unused")}
    trained["proxy"].grad, trained["weight"].grad = torch.tensor([2.0, 3.0]), torch.tensor([4.0, 8.0])
    optimization.scale_gradients(trained, {"proxy", "late"}, 0.25, 2)
    assert trained["proxy"].grad.tolist() == [0.75, 1.0] and trained["late"].grad.tolist() == [0.25, 0.25]
    assert trained["weight"].grad.tolist() == [2.0, 4.0] and trained["unused"].grad is None
