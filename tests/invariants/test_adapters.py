"""LoRA and QLoRA runs: the same by every means, resumed to the bit, merged on the way out."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from medtune.config import instantiate
from medtune.models.weights import load_weights
from medtune.training.building import build_model
from medtune.training.config import TrainConfig
from medtune.training.runtime import Runtime
from tests.runs import LORA, SFT, SGD, TINY, die_at, largest_difference, launch, losses, metrics, tiny, weights

RUN: dict[str, Any] = {**SFT, "model": LORA, "trainable": ["adapter"], "optimizer": SGD, "max_steps": 6}
QLORA = {**LORA, "_component_": "medtune.models.mini.qlora_mini_vlm", "embed_dim": 128}
QRUN: dict[str, Any] = {**RUN, "model": QLORA, "optimizer": TINY["optimizer"], "max_steps": 3}
WAYS: dict[str, tuple[int, dict[str, Any]]] = {
    "two processes": (2, {"batch_size": 2}),
    "activation checkpointing": (1, {"activation_checkpointing": True}),
    "two processes, activation checkpointing": (2, {"batch_size": 2, "activation_checkpointing": True}),
}
TOKENS = torch.tensor([[5, 9, 200, 31, 7, 44]])
VISION = {
    "images": torch.linspace(-1, 1, 768).reshape(1, 1, 1, 3, 16, 16),
    "aspect_ratio": torch.ones(1, 1, 2, dtype=torch.long),
    "tiles": torch.ones(1, 1, dtype=torch.long),
}


def adapters(folder: Path) -> dict[str, torch.Tensor]:
    """The adapters of the last checkpoint, by parameter name."""
    return load_file(sorted((folder / "checkpoints").glob("step_*"))[-1] / "model.safetensors")


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        features = model.eval().encode(VISION)
        mask = torch.ones(1, TOKENS.shape[1], features.shape[1], dtype=torch.bool)
        return model.logits(model.hidden(TOKENS, features, vision_mask=mask))


def adapted(config: TrainConfig) -> Any:
    """The model as the run left it: base weights by seed, adapters from its checkpoint."""
    model, _ = build_model(config, Runtime(torch.device("cpu")))
    named = dict(model.named_parameters())
    for name, value in adapters(Path(config.output_dir)).items():
        named[name].data.copy_(value)
    return model


def exported(config: TrainConfig) -> Any:
    """A plain model with the exported weights."""
    model = instantiate(tiny(Path(config.output_dir), model={"embed_dim": config.model["embed_dim"]}).model)
    model.load_state_dict(load_weights(Path(config.output_dir, "weights"), model))
    return model


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    assert launch(tiny(folder, **RUN)) == [0]
    return folder


@pytest.mark.parametrize("way", WAYS)
def test_same_run_by_other_means(way: str, plain: Path, tmp_path: Path) -> None:
    world, changes = WAYS[way]
    assert launch(tiny(tmp_path, **{**RUN, **changes}), world) == [0] * world
    assert losses(tmp_path) == pytest.approx(losses(plain), abs=1e-6)
    assert largest_difference(weights(plain), weights(tmp_path)) < 1e-6
    assert largest_difference(adapters(plain), adapters(tmp_path)) < 1e-6


def test_only_adapters_are_trained_and_saved(plain: Path) -> None:
    config = tiny(plain, **RUN)
    start, _ = build_model(config, Runtime(torch.device("cpu")))
    named = dict(start.named_parameters())
    trained = adapters(plain)
    assert set(trained) == {name for name in named if "lora_" in name}
    still = [name for name, value in trained.items() if torch.equal(value, named[name])]
    assert not [name for name in still if "lora_b" in name]
    assert any(".fusion_layer." in name for name in trained) and any("encoder.clip" in name for name in trained)


def test_merged_export_is_the_adapted_model(plain: Path) -> None:
    config = tiny(plain, **RUN)
    assert not [name for name in load_file(plain / "weights" / "model.safetensors") if "lora" in name]
    base, _ = build_model(config, Runtime(torch.device("cpu")))
    assert (logits(adapted(config)) - logits(base)).abs().max() > 1e-2, "the adapters do something"
    torch.testing.assert_close(logits(exported(config)), logits(adapted(config)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("world", [1, 2])
def test_resumed_to_the_bit(world: int, tmp_path: Path) -> None:
    options = {**RUN, "optimizer": TINY["optimizer"], "save_every_steps": 2, "batch_size": 4 // world}
    options |= {"activation_checkpointing": True}
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    assert launch(tiny(straight, **options), world) == [0] * world
    assert launch(tiny(broken, **options), world, harm=die_at(5)) == [9] * world
    assert launch(tiny(broken, **options), world) == [0] * world
    assert metrics(broken) == metrics(straight)
    assert largest_difference(weights(broken), weights(straight)) == 0.0
    assert largest_difference(adapters(broken), adapters(straight)) == 0.0


@pytest.mark.parametrize("world", [1, 2])
def test_a_run_starts_from_the_merged_export(world: int, plain: Path, tmp_path: Path) -> None:
    again = tiny(tmp_path / "lora", **{**RUN, "max_steps": 1, "batch_size": 4 // world}, export="hf")
    assert launch(again, world) == [0] * world
    config = tiny(tmp_path / "full", **SFT, checkpoint=str(tmp_path / "lora" / "weights"), max_steps=1)
    config.batch_size, config.optimizer["lr"] = 4 // world, 0.0
    config.optimizer["weight_decay"] = 0.0
    assert launch(config, world) == [0] * world
    before = load_weights(tmp_path / "lora" / "weights", instantiate(config.model))
    after = load_file(tmp_path / "full" / "weights" / "model.safetensors")
    assert largest_difference(before, after) == 0.0


def test_qlora_trains_resumes_and_exports(tmp_path: Path) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    assert launch(tiny(straight, **QRUN, save_every_steps=1)) == [0]
    assert launch(tiny(broken, **QRUN, save_every_steps=1), harm=die_at(1)) == [9]
    assert launch(tiny(broken, **QRUN, save_every_steps=1)) == [0]
    assert metrics(broken) == metrics(straight) and losses(straight)[2] < losses(straight)[0]
    assert largest_difference(weights(broken), weights(straight)) == 0.0
    config = tiny(straight, **QRUN)
    # torchtune unpacks 4-bit weights to bf16, also in an fp32 model: 0.006 was measured.
    torch.testing.assert_close(logits(exported(config)), logits(adapted(config)), rtol=0, atol=0.02)


def test_qlora_on_two_processes(tmp_path: Path) -> None:
    wide = {"embed_dim": 256}
    base = {**RUN, "model": {**TINY["model"], **wide}, "trainable": ["vision"], "max_steps": 1}
    assert launch(tiny(tmp_path / "base", **base)) == [0]
    options = {**QRUN, "model": {**QLORA, **wide}, "optimizer": SGD, "max_steps": 2, "save_every_steps": 1}
    options["checkpoint"] = str(tmp_path / "base" / "weights" / "model.safetensors")
    one, two = tmp_path / "one", tmp_path / "two"
    assert launch(tiny(one, **options)) == [0]
    options["batch_size"] = 2
    assert launch(tiny(two, **options), world=2, harm=die_at(1)) == [9, 9]
    assert launch(tiny(two, **options), world=2) == [0, 0]
    assert losses(two) == pytest.approx(losses(one), abs=1e-6)
    assert largest_difference(adapters(one), adapters(two)) < 1e-6
    config = tiny(two, **options)
    torch.testing.assert_close(logits(exported(config)), logits(adapted(config)), rtol=0, atol=1e-5)


def test_qlora_that_cannot_be_split_is_refused_before_training(tmp_path: Path) -> None:
    assert launch(tiny(tmp_path, **{**QRUN, "batch_size": 2}), world=2) == [2, 2]
    assert "4-bit weights cannot be split over 2 processes" in (tmp_path / "error_1.txt").read_text()
