"""Continuing from an adapter: with an optimizer of its own or the earlier one, on other data, and what is refused."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from medtune.cli.main import main
from medtune.config import build, instantiate, save_config
from medtune.errors import ConfigError
from medtune.models.mini import mini_llava
from medtune.models.weights import save_hf
from medtune.training.config import TrainConfig
from tests.runs import SFT, die_at, largest_difference, launch, losses, tiny, weights

SIZES = {"vocab_size": 1024, "embed_dim": 32, "vision_layers": 3, "decoder_layers": 2, "image_size": 16}
MODEL: dict[str, Any] = {
    **SIZES,
    "_component_": "medtune.models.mini.lora_mini_llava",
    "lora_attn_modules": ["q_proj", "v_proj"],
    "lora_parts": ["vision", "decoder"],
    "lora_rank": 2,
    "lora_alpha": 8,
}
RUN: dict[str, Any] = {
    **SFT,
    "model": MODEL,
    "transform": {"_component_": "medtune.models.mini.mini_llava_transform", "path": "${asset}", "image_size": 16},
    "trainable": ["adapter.decoder", "projection"],
    "schedule": {"kind": "constant", "warmup_steps": 0},
    "max_steps": 3,
    "export": "torchtune",
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    model = mini_llava(**SIZES)
    return save_hf(model.state_dict(), model.family, tmp_path_factory.mktemp("weights") / "base")


def config(folder: Path, base: Path, **changes: Any) -> TrainConfig:
    made = tiny(folder, **{**RUN, "checkpoint": str(base), **changes})
    made.learning_rates = {}
    return made


@pytest.fixture(scope="module")
def first(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three steps of adapters in the decoder and of the projection."""
    folder = tmp_path_factory.mktemp("first") / "run"
    assert launch(config(folder, base)) == [0]
    return folder


@pytest.fixture(scope="module")
def peft(first: Path) -> Path:
    out = first.parent / "peft"
    assert main(["export", str(first), "--to", "peft", "--out", str(out)]) == 0
    return out


def final(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "weights" / "model.safetensors")


def tiny_step(folder: Path, base: Path, adapter: Path, **changes: Any) -> TrainConfig:
    """One step that changes nothing: what it writes is what it started from."""
    still = {"optimizer": {"_component_": "torch.optim.SGD", "lr": 0.0}, "max_steps": 1}
    return config(folder, base, adapter=str(adapter), **{**still, **changes})


@pytest.mark.parametrize("source", ["a run", "a step", "a PEFT folder"])
def test_it_starts_where_the_first_run_ended(source: str, base: Path, first: Path, peft: Path, tmp_path: Path) -> None:
    adapter = {"a run": first, "a step": next((first / "checkpoints").glob("step_*3")), "a PEFT folder": peft}[source]
    assert launch(tiny_step(tmp_path / "run", base, adapter)) == [0]
    assert largest_difference(final(tmp_path / "run"), final(first)) == 0


def test_without_it_the_start_is_another_one(base: Path, first: Path, tmp_path: Path) -> None:
    """Else the equality above could not fail."""
    still = {"optimizer": {"_component_": "torch.optim.SGD", "lr": 0.0}, "max_steps": 1}
    assert launch(config(tmp_path / "run", base, **still)) == [0]
    assert largest_difference(final(tmp_path / "run"), final(first)) > 1e-4


@pytest.mark.parametrize("form", ["hf", "peft"])
def test_what_the_second_run_does_not_train_is_exported_as_it_came(
    form: str, base: Path, first: Path, peft: Path, tmp_path: Path
) -> None:
    """The first run trained the projection, the second one only adapters; its checkpoint holds both."""
    run = tmp_path / "run"
    assert launch(tiny_step(run, base, peft, trainable=["adapter.decoder"])) == [0]
    moved = shutil.copytree(run, tmp_path / "moved")
    assert main(["export", str(moved), "--to", form, "--out", str(tmp_path / "out")]) == 0
    name = "model.safetensors" if form == "hf" else "adapter_model.safetensors"
    assert main(["export", str(first), "--to", form, "--out", str(tmp_path / "of_first")]) == 0
    ours, theirs = load_file(tmp_path / "out" / name), load_file(tmp_path / "of_first" / name)
    assert any("projector" in key for key in ours) and largest_difference(ours, theirs) == 0


def test_two_runs_with_the_optimizer_kept_are_one_run(base: Path, tmp_path: Path) -> None:
    """Full batches of the whole data set and no schedule: the second run's step is the first run's fourth."""
    steady = {"batch_size": 22, "bucket": False, "max_steps": 1, "optimizer": {"_component_": "torch.optim.AdamW"}}
    steady["optimizer"]["lr"] = 2e-3
    assert launch(config(tmp_path / "long", base, **{**steady, "max_steps": 4})) == [0]
    assert launch(config(tmp_path / "short", base, **{**steady, "max_steps": 3})) == [0]
    for kept in (True, False):
        again = config(tmp_path / f"kept_{kept}", base, adapter=str(tmp_path / "short"), keep_optimizer=kept, **steady)
        assert launch(again) == [0]
    whole = final(tmp_path / "long")
    assert largest_difference(final(tmp_path / "kept_True"), whole) < 1e-6
    assert largest_difference(final(tmp_path / "kept_False"), whole) > 1e-4


@pytest.mark.parametrize("kept", [True, False])
def test_a_resumed_continuation_is_the_straight_one(kept: bool, base: Path, first: Path, tmp_path: Path) -> None:
    changes = {"adapter": str(first), "keep_optimizer": kept, "save_every_steps": 1}
    assert launch(config(tmp_path / "straight", base, **changes)) == [0]
    assert launch(config(tmp_path / "killed", base, **changes), harm=die_at(2)) == [9]
    assert launch(config(tmp_path / "killed", base, **changes)) == [0]
    assert largest_difference(weights(tmp_path / "killed"), weights(tmp_path / "straight")) == 0
    assert losses(tmp_path / "killed") == losses(tmp_path / "straight")


def test_two_processes_start_from_it_too(base: Path, first: Path, tmp_path: Path) -> None:
    assert launch(tiny_step(tmp_path / "run", base, first, batch_size=2), world=2) == [0, 0]
    assert largest_difference(final(tmp_path / "run"), final(first)) == 0


def said(folder: Path) -> str:
    return (folder / "error_0.txt").read_text()


def refused(folder: Path, made: TrainConfig) -> str:
    folder.mkdir(exist_ok=True)
    assert launch(made) == [2]
    return said(folder)


def test_another_adapter_is_another_run(base: Path, first: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert launch(tiny_step(run, base, first)) == [0]
    other = shutil.copytree(first, tmp_path / "other")
    step = next((other / "checkpoints").glob("step_*3"))
    shutil.rmtree(step)
    assert launch(config(tmp_path / "longer", base, max_steps=4)) == [0]
    assert "adapter" in refused(run, tiny_step(run, base, tmp_path / "longer"))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "nothing there": ({"adapter": "nowhere"}, "neither a folder in PEFT's format nor a run"),
    "complete weights": ({"adapter": "WEIGHTS"}, "It holds complete weights: set checkpoint to it"),
    "another scale": (
        {"model": {**MODEL, "lora_alpha": 16}},
        "belongs to another model (lora_alpha: 8 there, 16 here)",
    ),
    "another rank": ({"model": {**MODEL, "lora_rank": 4}}, "belongs to another model (lora_rank"),
    "other layers": ({"model": {**MODEL, "lora_attn_modules": ["q_proj"]}}, "belongs to another model"),
    "another optimizer": (
        {"keep_optimizer": True, "optimizer": {"_component_": "torch.optim.SGD", "lr": 0.1}},
        "has the state of torch.optim.AdamW, and this run uses torch.optim.SGD",
    ),
    "other parts": ({"keep_optimizer": True, "trainable": ["adapter"]}, "has no state for"),
    "an optimizer of a PEFT folder": (
        {"keep_optimizer": True, "adapter": "PEFT"},
        "has no optimizer state; name a run",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_continued_is_one_sentence(
    case: str, base: Path, first: Path, peft: Path, tmp_path: Path
) -> None:
    changes, sentence = REFUSED[case]
    places = {"WEIGHTS": str(first / "weights"), "PEFT": str(peft)}
    adapter = changes.get("adapter", str(first))
    made = config(tmp_path / "run", base, **{**changes, "adapter": places.get(adapter, adapter)})
    assert sentence in refused(tmp_path / "run", made)


def test_other_base_weights_are_refused(base: Path, first: Path, tmp_path: Path) -> None:
    torch.manual_seed(9)
    model = mini_llava(**SIZES)
    other = save_hf(model.state_dict(), model.family, tmp_path / "other")
    assert "was trained on other base weights" in refused(
        tmp_path / "run", config(tmp_path / "run", other, adapter=str(first))
    )


def test_plan_names_what_is_wrong_with_an_adapter(
    base: Path, first: Path, peft: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for adapter, status in ((first, 0), (peft, 0), (tmp_path, 2)):
        save_config(config(tmp_path / "run", base, adapter=str(adapter)), tmp_path / "config.yaml")
        assert main(["plan", str(tmp_path / "config.yaml")]) == status
    assert "nor a run or its checkpoints/step_N" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [({"adapter": "a"}, "adapter needs checkpoint"), ({"keep_optimizer": True}, "keep_optimizer needs adapter")],
)
def test_keys_that_need_another_say_which(changes: dict[str, Any], sentence: str) -> None:
    values = {"output_dir": "x", **{key: RUN[key] for key in ("model", "transform", "dataset", "objective")}, **changes}
    with pytest.raises(ConfigError, match=sentence):
        build(TrainConfig, values, "test")


def test_the_builders_dropout_may_change(base: Path, first: Path, tmp_path: Path) -> None:
    assert instantiate({**MODEL, "lora_dropout": 0.1})
    made = tiny_step(tmp_path / "run", base, first, model={**MODEL, "lora_dropout": 0.1})
    assert launch(made) == [0]
    assert largest_difference(final(tmp_path / "run"), final(first)) == 0
