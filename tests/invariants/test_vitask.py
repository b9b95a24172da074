"""Invariants 1 to 4 and 7 for VITask: the same two-stage run by other means, on each kind of model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from medtune.config import instantiate
from tests.runs import SGD, die_at, largest_difference, launch, losses, metrics, tiny, weights
from tests.tiny_task import task_rows, write_task, write_tsm

SIZES = {"vocab_size": 1024, "embed_dim": 16, "vision_layers": 1, "decoder_layers": 2, "image_size": 16}
INTERNVL: dict[str, Any] = {
    "model": {
        "_component_": "medtune.models.mini.lora_mini_internvl",
        "lora_rank": 2,
        "lora_alpha": 8,
        "lora_dropout": 0.1,
        **SIZES,
    },
    "transform": {"_component_": "medtune.models.mini.mini_internvl_transform", "image_size": 16, "max_num_tiles": 2},
    "trainable": ["adapter"],
}
LLAVA: dict[str, Any] = {
    "model": {"_component_": "medtune.models.mini.mini_llava", **SIZES},
    "transform": {"_component_": "medtune.models.mini.mini_llava_transform", "image_size": 16},
    "trainable": ["projection", "decoder"],
}
LLAMA: dict[str, Any] = {"trainable": ["fusion", "decoder"]}
ALIGN, STEPS = 3, 8


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Data and method; the whole set has 21 rows, so that the last step of an epoch is short."""
    folder = tmp_path_factory.mktemp("task")
    objective = {
        "_component_": "medtune.objectives.VITask",
        "tsm": write_tsm(folder / "tsm"),
        "alpha": 0.7,
        "beta": 1.3,
        "align_steps": ALIGN,
        "connector_learning_rate": 0.1,
        "chunk_tokens": 0,
    }
    return {
        "dataset": write_task(folder / "data"),
        "objective": objective,
        "learning_rates": {},
        "max_steps": STEPS - ALIGN,
        "optimizer": SGD,
    }


@pytest.fixture(scope="module")
def plain(task: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    assert launch(tiny(folder, **task, **LLAMA)) == [0]
    return folder


def changed(task: dict[str, Any], **objective: Any) -> dict[str, Any]:
    return {**task, "objective": {**task["objective"], **objective}}


WAYS: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "two processes, activation checkpointing": (2, {"batch_size": 2, "activation_checkpointing": True}, {}),
    "accumulation, chunked losses": (1, {"batch_size": 1, "gradient_accumulation_steps": 4}, {"chunk_tokens": 2}),
    "two processes, separate passes": (2, {"batch_size": 2}, {"passes": "separate"}),
}


@pytest.mark.parametrize("way", WAYS)
def test_same_run_by_other_means(way: str, task: dict[str, Any], plain: Path, tmp_path: Path) -> None:
    world, changes, objective = WAYS[way]
    config = tiny(tmp_path, **{**changed(task, **objective), **LLAMA, **changes})
    assert launch(config, world) == [0] * world
    for ours, theirs in zip(metrics(tmp_path), metrics(plain), strict=True):
        assert {k: v for k, v in ours.items() if k != "stage"} == pytest.approx(
            {k: v for k, v in theirs.items() if k != "stage"}, abs=2e-6
        )
    assert largest_difference(weights(plain), weights(tmp_path)) < 1e-6


def test_workers_change_nothing(task: dict[str, Any], plain: Path, tmp_path: Path) -> None:
    assert launch(tiny(tmp_path, **task, **LLAMA, num_workers=2)) == [0]
    assert metrics(tmp_path) == metrics(plain)


@pytest.mark.parametrize("step", [2, 3, 6])
def test_killed_before_at_and_after_the_border_of_the_stages(
    step: int, task: dict[str, Any], plain: Path, tmp_path: Path
) -> None:
    config = tiny(tmp_path, **task, **LLAMA, save_every_steps=2)
    assert launch(config, harm=die_at(step)) == [9]
    assert launch(config) == [0]
    assert metrics(tmp_path) == metrics(plain)
    first, second = weights(plain), weights(tmp_path)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def start_weights(folder: Path, **changes: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(11)
    return instantiate(tiny(folder, **changes).model).state_dict()


def test_frozen_is_unchanged_to_the_bit_and_the_connector_moves_in_the_first_stage_alone(
    task: dict[str, Any], plain: Path
) -> None:
    before, after = start_weights(plain, **task, **LLAMA), weights(plain)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all(name.startswith("decoder.") for name in moved)
    border, end = (
        load_file(plain / "checkpoints" / f"step_{step:08d}" / "objective.safetensors") for step in (ALIGN, STEPS)
    )
    fresh = weights_of_a_new_connector(task)
    assert border.keys() == end.keys() == fresh.keys()
    assert all(torch.equal(border[name], end[name]) for name in border)
    assert all(not torch.equal(border[name], fresh[name]) for name in border)
    stages = [line["stage"] for line in metrics(plain)]
    assert stages == ["align"] * ALIGN + ["contrast"] * (STEPS - ALIGN)
    assert ["crt" in line for line in metrics(plain)] == [stage == "contrast" for stage in stages]


def weights_of_a_new_connector(task: dict[str, Any]) -> dict[str, torch.Tensor]:
    from medtune.modules.exemplar import ExemplarConnector

    connector = ExemplarConnector(12, SIZES["embed_dim"], seed=11)  # type: ignore[arg-type]
    return {f"connector.{name}": value for name, value in connector.state_dict().items()}


def test_without_its_terms_it_is_visual_instruction_tuning_to_the_bit(task: dict[str, Any], tmp_path: Path) -> None:
    nothing = {"_component_": "medtune.objectives.VITask", "exemplar": "none", "alpha": 0.0, "beta": 0.0}
    sft = {"_component_": "medtune.objectives.SFT"}
    common = {**task, **INTERNVL, "max_steps": 4, "optimizer": {"_component_": "torch.optim.AdamW", "lr": 2e-3}}
    for name, objective in (("vitask", nothing), ("sft", sft)):
        (tmp_path / name).mkdir()
        assert launch(tiny(tmp_path / name, **{**common, "objective": {**objective, "chunk_tokens": 5}})) == [0]
    first, second = weights(tmp_path / "vitask"), weights(tmp_path / "sft")
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert losses(tmp_path / "vitask") == losses(tmp_path / "sft")


@pytest.mark.parametrize("kind", ["internvl", "llava"])
def test_two_processes_where_images_are_tokens(kind: str, task: dict[str, Any], tmp_path: Path) -> None:
    model = {"internvl": INTERNVL, "llava": LLAVA}[kind]
    if kind == "internvl":  # dropout draws anew for each micro-batch
        model = {**model, "model": {**model["model"], "lora_dropout": 0.0}}
    common = {**task, **model, "max_steps": 3}
    one, two = tmp_path / "one", tmp_path / "two"
    assert launch(tiny(one, **common)) == [0]
    assert launch(tiny(two, **common, batch_size=2), world=2) == [0, 0]
    assert losses(two) == pytest.approx(losses(one), abs=2e-6)
    assert largest_difference(weights(one), weights(two)) < 1e-6


@pytest.mark.parametrize("kind", ["internvl", "llava"])
def test_instfree_where_images_are_tokens(kind: str, task: dict[str, Any], tmp_path: Path) -> None:
    reports = [{**row, "messages": row["messages"][1:]} for row in task_rows(2)]
    model = {"internvl": INTERNVL, "llava": LLAVA}[kind]
    config = tiny(tmp_path, **model, dataset=write_task(tmp_path / "data", reports), max_steps=6)
    assert launch(config) == [0]
    before, after = start_weights(tmp_path, **model), weights(tmp_path)
    moved = {name for name, value in after.items() if name in before and not torch.equal(before[name], value)}
    assert moved and "objective.proxy.weight" in after
    assert losses(tmp_path)[-1] < losses(tmp_path)[0]
