"""Adapters are parts of their own, and ``adapter`` means all of them: rates, order, table, hints, first values."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from medtune.cli.main import main
from medtune.config import Component, instantiate, save_config
from medtune.errors import ConfigError
from medtune.models.common.parts import expand, group_of, names_of
from medtune.objectives.base import Stage
from medtune.objectives.sft import SFT
from medtune.training.building import adapter_start, build_model
from medtune.training.optimization import check_rates, make_optimizer
from medtune.training.parts import TrainedParts, check_parts
from medtune.training.runtime import Runtime
from tests.runs import LORA, die_at, largest_difference, launch, losses, metrics, tiny, weights
from tests.runs import SFT as SFT_RUN

PLACES = ["adapter.vision", "adapter.projection", "adapter.fusion", "adapter.decoder"]


@pytest.fixture(scope="module")
def parts() -> TrainedParts:
    with torch.device("meta"):
        model = instantiate(Component({**LORA, "apply_lora_to_output": True}))
    return TrainedParts(model, SFT(), model.parts())


def test_a_group_stands_for_its_parts() -> None:
    known = ["vision", "adapter.vision", "adapter.decoder"]
    assert expand(["adapter", "vision", "adapter.vision"], known) == ["adapter.vision", "adapter.decoder", "vision"]
    assert expand(["proxy"], known) == ["proxy"]
    assert [group_of(part) for part in known] == [None, "adapter", "adapter"]
    assert names_of("adapter", {"adapter.vision": ["a"], "vision": ["b"], "adapter.decoder": ["c"]}) == ["a", "c"]
    assert names_of("adapter", {"vision": ["b"]}) == []


def test_the_group_keeps_the_order_of_the_model(parts: TrainedParts) -> None:
    """The gradient norm is a sum in this order, so that another one would change the last bits of old runs."""
    every = [name for name, _ in parts.model.named_parameters() if ".lora_" in name]
    assert list(parts.select(["adapter"])) == every
    assert list(parts.select(PLACES)) != every and set(parts.select(PLACES)) == set(every)


SGD = Component(_component_="torch.optim.SGD", lr=0.5)


@pytest.mark.parametrize(
    ("trained", "rates", "wanted"),
    [
        (["adapter"], {}, {"adapter": 0.5}),
        (["adapter"], {"adapter": 0.1}, {"adapter": 0.1}),
        (["projection", "adapter"], {"adapter": 0.1}, {"projection": 0.5, "adapter": 0.1}),
        (["adapter"], {"adapter.vision": 0.2}, {**dict.fromkeys(PLACES, 0.5), "adapter.vision": 0.2}),
        (
            ["adapter"],
            {"adapter": 0.1, "adapter.decoder": 0.2},
            {**dict.fromkeys(PLACES, 0.1), "adapter.decoder": 0.2},
        ),
        (["adapter.decoder", "adapter.vision"], {"adapter": 0.1}, {"adapter.decoder": 0.1, "adapter.vision": 0.1}),
        (["adapter.vision", "adapter"], {"adapter.fusion": 0.2}, {**dict.fromkeys(PLACES, 0.5), "adapter.fusion": 0.2}),
    ],
)
def test_each_part_of_the_adapters_may_have_a_rate(
    parts: TrainedParts, trained: list[str], rates: dict[str, float], wanted: dict[str, float]
) -> None:
    optimizer = make_optimizer(SGD, parts, trained, rates)
    assert {group["part"]: group["lr"] for group in optimizer.param_groups} == wanted
    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in parts.select(trained).values())


@pytest.mark.parametrize(
    ("rates", "said"),
    [
        ({"adapter.vision": 1.0}, None),
        ({"adapter": 1.0}, None),
        ({"adapter.fusion": 1.0}, r"learning_rates\.adapter\.fusion: this run trains adapter\.decoder, adapter\.visi"),
        ({"adaptor": 1.0}, r"learning_rates\.adaptor: this run .*did you mean 'adapter"),
    ],
)
def test_a_rate_must_reach_something(parts: TrainedParts, rates: dict[str, float], said: str | None) -> None:
    stages = [Stage("train", ("adapter.vision", "adapter.decoder"))]
    if said is None:
        check_rates(rates, stages, parts, {})
    else:
        with pytest.raises(ConfigError, match=said):
            check_rates(rates, stages, parts, {})


def test_a_part_that_is_not_there_is_named_with_the_nearest(parts: TrainedParts) -> None:
    for asked, said in (("visoin", "did you mean 'vision'"), ("adapter.visoin", "did you mean 'adapter.vision'")):
        with pytest.raises(ConfigError, match=f"the model has no part '{asked}'; it has vision, .*; {said}"):
            parts.known([asked])
    with pytest.raises(ConfigError, match="the model has no part 'empty'; it has vision$"):
        check_parts(["empty"], {"vision": ["a"], "empty": []})
    assert parts.known(["adapter", "decoder"]) == ["adapter", "decoder"]


def test_the_table_has_a_row_for_each_part(parts: TrainedParts) -> None:
    rows = {line.split()[0]: line.split()[1:] for line in parts.table(["adapter"]).splitlines()}
    assert set(PLACES) < rows.keys() and "adapter" not in rows
    for part, (total, trained, frozen) in list(rows.items())[1:-1]:
        wanted = (total, "0") if part in PLACES else ("0", total)
        assert (trained, frozen) == wanted
    one = {line.split()[0]: line.split()[2] for line in parts.table(["adapter.vision"]).splitlines()}
    assert one["adapter.vision"] != "0" and one["adapter.decoder"] == one["vision"] == "0"
    assert len({len(line) for line in parts.table([]).splitlines()}) == 1


def test_only_the_named_adapters_train(parts: TrainedParts) -> None:
    parts.train_only(["adapter.vision", "projection"])
    trained = {name for name, parameter in parts.named().items() if parameter.requires_grad}
    assert trained == {*parts.members["adapter.vision"], *parts.members["projection"]}
    parts.train_only(["adapter"])
    trained = {name for name, parameter in parts.named().items() if parameter.requires_grad}
    assert trained == set(names_of("adapter", parts.members))


def test_plan_says_it_without_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "plan.yaml"
    save_config(tiny(tmp_path, **SFT_RUN, model=LORA, trainable=["adapter"]), config)
    assert main(["plan", str(config), "learning_rates={adapter.vision: 1.0e-4}"]) == 0
    assert "adapter.decoder" in capsys.readouterr().out
    # a mapping may take the place of a list, one option of a part that of the mapping
    parts = ["model.lora_parts=[vision, decoder]", "model.lora_parts={vision: {rank: 3}, decoder: null}"]
    assert main(["plan", str(config), *parts, "model.lora_parts.vision.alpha=4"]) == 0
    assert "adapter.fusion" not in capsys.readouterr().out
    assert main(["plan", str(config), *parts, "model.lora_parts.vision.alfa=4"]) == 2
    assert "lora_parts.vision: no option 'alfa' here; did you mean 'alpha'?" in capsys.readouterr().err
    assert main(["plan", str(config), "trainable=[adapter.visoin]"]) == 2
    assert "did you mean 'adapter.vision'?" in capsys.readouterr().err


def test_the_whole_group_at_one_rate_trains_as_its_parts_do(tmp_path: Path) -> None:
    """As a group and part by part: the rates of an old config keep their name, and the losses agree."""
    run: dict[str, Any] = {**SFT_RUN, "model": LORA, "max_steps": 3, "clip_grad_norm": None}
    assert launch(tiny(tmp_path / "group", **run, trainable=["adapter"])) == [0]
    assert launch(tiny(tmp_path / "parts", **run, trainable=PLACES)) == [0]
    assert losses(tmp_path / "group") == losses(tmp_path / "parts")
    rates = [{key for key in metrics(tmp_path / name)[0] if key.startswith("lr/")} for name in ("group", "parts")]
    assert rates == [{"lr/adapter"}, {f"lr/{part}" for part in PLACES}]


def test_rates_of_their_own_on_two_processes_and_after_a_kill(tmp_path: Path) -> None:
    model = {**LORA, "lora_parts": {"vision": {"rank": 2}, "decoder": {"rank": 3, "alpha": 6}}}
    rates = {"adapter.vision": 0.02, "adapter.decoder": 0.05}
    run: dict[str, Any] = {**SFT_RUN, "model": model, "trainable": ["adapter"], "max_steps": 3, "save_every_steps": 1}
    run |= {"learning_rates": rates, "optimizer": {"_component_": "torch.optim.SGD", "lr": 9.0, "momentum": 0.9}}
    one, two = tiny(tmp_path / "one", **run), tiny(tmp_path / "two", **{**run, "batch_size": 2})
    one.learning_rates = two.learning_rates = rates
    assert launch(one) == [0]
    assert launch(two, 2, die_at(2)) == [9, 9]
    assert launch(two, 2) == [0, 0]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-6)
    shown = [{key: line[key] for key in line if key.startswith("lr/")} for line in metrics(tmp_path / "two")]
    assert shown == [{key: line[key] for key in line if key.startswith("lr/")} for line in metrics(tmp_path / "one")]
    assert shown[-1].keys() == {"lr/adapter.vision", "lr/adapter.decoder"}
    assert largest_difference(weights(tmp_path / "one"), weights(tmp_path / "two")) < 1e-6


# -- first values -----------------------------------------------------------------------------------------------------


def started(seed: int) -> dict[str, Tensor]:
    config = tiny(Path("unused"), model=LORA, trainable=["adapter"], seed=seed)
    model, _ = build_model(config, Runtime(torch.device("cpu")))
    return {name: p.detach() for name, p in model.named_parameters() if ".lora_" in name}


def test_adapters_are_drawn_per_name_and_per_seed() -> None:
    """Alike adapters of all layers, or of all seeds, would make "three seeds" share one start."""
    first, again, other = started(11), started(11), started(12)
    resamples = [value for name, value in first.items() if ".lora_a." in name]
    assert len(resamples) > 10
    for i, one in enumerate(resamples):
        assert not any(one.shape == two.shape and torch.equal(one, two) for two in resamples[i + 1 :])
    for name, value in first.items():
        assert torch.equal(value, again[name])
        assert torch.equal(value, other[name]) == (".lora_b." in name)
        assert bool(value.any()) == (".lora_a." in name)


def test_an_adapters_start_is_uniform_within_its_bound() -> None:
    like = torch.empty(64, 400, device="meta")
    value = adapter_start("decoder.layers.0.attn.q_proj.lora_a.weight", like, seed=0)
    bound = 1 / math.sqrt(400)
    assert value.shape == (64, 400) and value.abs().max() <= bound
    assert value.abs().max() > 0.99 * bound and abs(float(value.mean())) < 0.01 * bound
    assert float(value.std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert not adapter_start("decoder.layers.0.attn.q_proj.lora_b.weight", like, seed=0).any()
