"""Invariant 3 where images are tokens: the same run by other means, with text-only samples beside those with images."""

from pathlib import Path
from typing import Any

import pytest
import torch

from medtune.models.weights import load_weights
from medtune.training.trainer import Trainer
from tests.invariants.test_sft import MIXED, ranks_without_images
from tests.runs import CELLS, SFT, SGD, largest_difference, launch, losses, tiny, weights

PARTS = ["vision", "projection", "decoder"]
EARLY: dict[str, Any] = {
    "model": {"_component_": "tests.models.tiny_early.tiny_early_vlm", "vocab_size": 1024, "max_seq_len": 1024},
    "transform": {"_component_": "tests.models.tiny_early.tiny_early_transform", "max_seq_len": 1024},
    "optimizer": SGD,
    "trainable": PARTS,
    "bucket": False,
}
RUN: dict[str, Any] = {**EARLY, **SFT, "dataset": MIXED, "max_steps": 9}
WAYS: dict[str, tuple[int, dict[str, Any]]] = {
    "two processes": (2, {"batch_size": 1}),
    "accumulation": (1, {"batch_size": 1, "gradient_accumulation_steps": 2}),
    "activation checkpointing": (1, {"batch_size": 2, "activation_checkpointing": True}),
    "two processes, activation checkpointing": (2, {"batch_size": 1, "activation_checkpointing": True}),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    assert launch(tiny(folder, **RUN, batch_size=2)) == [0]
    return folder


@pytest.mark.parametrize("way", WAYS)
def test_same_run_by_other_means(way: str, plain: Path, tmp_path: Path) -> None:
    world, changes = WAYS[way]
    seen = tmp_path / "seen"
    assert launch(tiny(tmp_path, **RUN, **changes), world, harm=ranks_without_images(seen)) == [0] * world
    assert losses(tmp_path) == pytest.approx(losses(plain), abs=1e-6)
    assert largest_difference(weights(plain), weights(tmp_path)) < 1e-6
    if world == 2:
        first, second = (Path(f"{seen}_{rank}").read_text() for rank in (0, 1))
        assert set(zip(first, second, strict=True)) >= {("0", "1"), ("1", "0")}, "the data bring the case about"


def test_every_part_has_moved(plain: Path) -> None:
    torch.manual_seed(11)
    from medtune.config import instantiate

    model, after = instantiate(tiny(plain, **RUN).model), weights(plain)
    still = [name for name, value in model.state_dict().items() if torch.equal(value, after[name])]
    assert not still
    read = load_weights(plain / "weights" / "model.safetensors", model)
    assert read.keys() == model.state_dict().keys() and all(torch.equal(read[name], after[name]) for name in read)


def test_a_proxy_instruction_on_two_processes(tmp_path: Path) -> None:
    """InstFree knows nothing of the kind of model."""
    found = []
    for world in (1, 2):
        folder = tmp_path / str(world)
        reports = {"_component_": CELLS, "size": 22, "seed": 5, "kind": "reports", "image_size": 16}
        config = tiny(folder, **EARLY, dataset=reports, batch_size=4 // world)
        assert launch(config, world) == [0] * world
        found.append((losses(folder), weights(folder)))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-6)
    assert len(set(found[0][0])) == 12
    assert largest_difference(found[0][1], found[1][1]) < 1e-6


def test_a_wrong_number_of_image_tokens_stops_the_run(tmp_path: Path) -> None:
    def harm() -> None:
        original = Trainer._forward_backward

        def step(self: Trainer, batches: list) -> torch.Tensor:
            if self.step == 3:
                for batch in batches:
                    batch["vision_mask"] = torch.zeros_like(batch["vision_mask"])
            return original(self, batches)

        Trainer._forward_backward = step  # type: ignore[method-assign]

    images = {"_component_": CELLS, "size": 9, "seed": 5, "kind": "instructions", "image_size": 16}
    assert launch(tiny(tmp_path, **{**RUN, "dataset": images}, batch_size=2), harm=harm) == [2]
    assert "has 4 image tokens for 0 image features" in (tmp_path / "error_0.txt").read_text()
