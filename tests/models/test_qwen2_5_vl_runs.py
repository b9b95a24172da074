"""Whole runs of a tiny Qwen2.5-VL: every method by the trainer that knows no family."""

from pathlib import Path
from typing import Any

import pytest
import torch

from medtune.config import instantiate, save_config
from medtune.training.plan import plan
from tests.invariants.test_sft import MIXED, ranks_without_images
from tests.runs import SFT, SGD, largest_difference, launch, losses, tiny, weights
from tests.tiny_task import task_rows, write_task, write_tsm

SIZES = {"vocab_size": 1024, "embed_dim": 16, "vision_layers": 2, "decoder_layers": 2, "heads": 2, "patch_size": 4}
IMAGES = {"patch_size": 4, "min_pixels": 256, "max_pixels": 512}
TRANSFORM = {"_component_": "medtune.models.mini.mini_qwen2_5_vl_transform", **IMAGES}
FULL: dict[str, Any] = {
    "model": {"_component_": "medtune.models.mini.mini_qwen2_5_vl", **SIZES},
    "transform": TRANSFORM,
    "optimizer": SGD,
    "trainable": ["vision", "projection", "decoder"],
    "bucket": False,
}
ADAPTED: dict[str, Any] = {
    "model": {
        "_component_": "medtune.models.mini.lora_mini_qwen2_5_vl",
        **SIZES,
        "lora_rank": 2,
        "lora_parts": ["vision", "decoder"],
    },
    "transform": TRANSFORM,
    "trainable": ["adapter", "projection"],
    "batch_size": 4,
}
WAYS: dict[str, tuple[int, dict[str, Any]]] = {
    "two processes, activation checkpointing": (2, {"batch_size": 1, "activation_checkpointing": True}),
    "accumulation": (1, {"batch_size": 1, "gradient_accumulation_steps": 2}),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of several sizes, and samples of text alone."""
    folder = tmp_path_factory.mktemp("plain")
    assert launch(tiny(folder, **{**FULL, **SFT, "dataset": MIXED, "max_steps": 9, "batch_size": 2})) == [0]
    return folder


@pytest.mark.parametrize("way", WAYS)
def test_sft_by_other_means(way: str, plain: Path, tmp_path: Path) -> None:
    world, changes = WAYS[way]
    run = {**FULL, **SFT, "dataset": MIXED, "max_steps": 9, **changes}
    seen = tmp_path / "seen"
    assert launch(tiny(tmp_path, **run), world, harm=ranks_without_images(seen)) == [0] * world
    assert losses(tmp_path) == pytest.approx(losses(plain), abs=1e-6)
    assert largest_difference(weights(plain), weights(tmp_path)) < 1e-6


def test_every_parameter_has_moved(plain: Path) -> None:
    torch.manual_seed(11)
    model, after = instantiate(tiny(plain, **{**FULL, **SFT, "dataset": MIXED}).model), weights(plain)
    assert not [name for name, value in model.state_dict().items() if torch.equal(value, after[name])]


def test_instfree_by_adapters_and_merger_on_one_process_and_two(tmp_path: Path) -> None:
    found = []
    for world in (1, 2):
        folder = tmp_path / str(world)
        assert launch(tiny(folder, **{**ADAPTED, "batch_size": 4 // world}), world) == [0] * world
        found.append((losses(folder), weights(folder)))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-6)
    assert largest_difference(found[0][1], found[1][1]) < 1e-6
    assert len(set(found[0][0])) > 3


def test_vitask_packed_as_apart(tmp_path: Path) -> None:
    """Both stages: exemplars after the image, and sampled negatives whose images have other sizes."""
    objective = {
        "_component_": "medtune.objectives.VITask",
        "tsm": write_tsm(tmp_path / "tsm"),
        "align_steps": 2,
        "chunk_tokens": 0,
    }
    run = {"dataset": write_task(tmp_path / "data"), "learning_rates": {}, "max_steps": 3, "batch_size": 4}
    found = []
    for passes in ("packed", "separate"):
        folder = tmp_path / passes
        assert launch(tiny(folder, **FULL, **run, objective={**objective, "passes": passes})) == [0]
        found.append((losses(folder), weights(folder)))
    assert found[0][0] == pytest.approx(found[1][0], abs=2e-6) and len(set(found[0][0])) == 5
    assert largest_difference(found[0][1], found[1][1]) < 1e-6


def test_features_from_disk_give_the_same_run(tmp_path: Path) -> None:
    """The grid of an image is known without its pixels."""
    rows = task_rows(2)
    data = write_task(tmp_path / "data", [*rows, {**rows[0], "id": "text", "images": []}])
    run = {**FULL, **SFT, "dataset": data, "trainable": ["decoder"], "max_steps": 5}
    found = []
    for name, cache in (("pixels", {}), ("features", {"feature_cache": str(tmp_path / "cache")})):
        assert launch(tiny(tmp_path / name, **run, **cache)) == [0]
        found.append((losses(tmp_path / name), weights(tmp_path / name)))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-6)
    assert largest_difference(found[0][1], found[1][1]) < 1e-6


def test_the_plan_shows_what_max_pixels_means_in_tokens(tmp_path: Path) -> None:
    """512 pixels are 8 blocks of 8 x 8."""
    save_config(tiny(tmp_path, **{**FULL, **SFT, "dataset": MIXED}), tmp_path / "run.yaml")
    found = plan(str(tmp_path / "run.yaml"))
    assert "at most 8 an image" in found.text()
    assert not found.problems and found.memory["activations"] > 0
    longer = plan(str(tmp_path / "run.yaml"), ["transform.min_pixels=4096", "transform.max_pixels=4096"])
    assert "at most 64 an image" in longer.text()
    assert longer.memory["activations"] > found.memory["activations"]
