"""The training recipes as users start them: `tune run` from several folders, one process and two, and bad input."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from medtune.config import instantiate, load_config
from medtune.models.weights import load_weights
from medtune.training.config import TrainConfig
from tests.runs import LORA, SFT, TINY, largest_difference, losses, tiny

CHECKOUT = Path(__file__).resolve().parents[2]
TUNE = Path(sys.executable).parent / "tune"
Recipe = Callable[..., tuple[int, str]]


def write_config(folder: Path, **changes: Any) -> Path:
    """A tiny run as a YAML file; it writes to ``folder / "run"``."""
    values = json.loads(json.dumps({**TINY, **changes}))
    values["transform"]["path"] = "${asset:mini_tokenizer}"
    path = folder / "config.yaml"
    path.write_text(OmegaConf.to_yaml(OmegaConf.create({"output_dir": str(folder / "run"), **values})))
    return path


@pytest.fixture
def recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Recipe:
    """Run a recipe's main on the tiny config with overrides; returns its status and what it said on stderr."""

    def run(name: str, *overrides: str, **changes: Any) -> tuple[int, str]:
        module = importlib.import_module(f"medtune.recipes.{name}")
        status = module.main(["--config", str(write_config(tmp_path, **changes)), *overrides])
        return status, capsys.readouterr().err

    return run


def tune_run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`tune run` in a process of its own, in ``folder``."""
    result = subprocess.run([TUNE, "run", *arguments], cwd=folder, capture_output=True, text=True, timeout=280)
    assert result.returncode == 0, result.stderr
    return result


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    """The folder above a checkout that bears the package's name, as a clone does."""
    (tmp_path / "parent").mkdir()
    (tmp_path / "parent" / "medtune").symlink_to(CHECKOUT)
    return tmp_path / "parent"


@pytest.mark.slow
def test_tune_run_trains_from_any_folder_with_one_process_and_two(tmp_path: Path, parent: Path) -> None:
    config = str(write_config(tmp_path, optimizer={"_component_": "torch.optim.SGD", "lr": 0.05}))
    ours, two = "medtune/recipes/instfree.py", ["--nproc_per_node", "2"]
    tune_run(CHECKOUT, ours, "--config", config, f"output_dir={tmp_path / 'one'}")
    tune_run(parent, *two, ours, "--config", config, f"output_dir={tmp_path / 'two'}", "batch_size=2")
    tune_run(Path("/"), ours, "--config", config, f"output_dir={tmp_path / 'root'}")
    first = load_file(tmp_path / "one" / "weights" / "model.safetensors")
    assert len(losses(tmp_path / "one")) == 12
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-6)
    assert losses(tmp_path / "root") == losses(tmp_path / "one")
    for other, largest in (("two", 1e-6), ("root", 0.0)):
        assert largest_difference(first, load_file(tmp_path / other / "weights" / "model.safetensors")) <= largest


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--nproc_per_node", "2")])
def test_the_packaged_mini_config_works_from_the_root_folder(options: tuple[str, ...], tmp_path: Path) -> None:
    short = ["max_steps=2", "objective.warmup_steps=1", "dataset.size=16", "dataset_val.size=8", "batch_size=4"]
    recipe, output = "medtune/recipes/instfree.py", f"output_dir={tmp_path}"
    tune_run(Path("/"), *options, recipe, "--config", "instfree/mini", output, *short)
    config = load_config("instfree/mini", TrainConfig)
    exported = load_weights(tmp_path / "weights", instantiate(config.model))
    base = load_weights(str(config.checkpoint), instantiate(config.model))
    frozen = [name for name in base if name.startswith("decoder.layers.0.attn")]
    assert frozen and all(torch.equal(base[name], exported[name]) for name in frozen)
    assert (tmp_path / "weights" / "config.json").is_file()


BAD: dict[str, tuple[list[str], str]] = {
    "a misspelt key": (["gradient_acumulation_steps=4"], "did you mean 'gradient_accumulation_steps'?"),
    "negative epochs": (["epochs=-1"], "epochs must be at least 1, got -1"),
    "an impossible dtype": (["dtype=bf61"], "dtype: 'bf61' is not one of 'fp32', 'bf16'"),
    "a value of another type": (["batch_size=many"], "batch_size: expected a whole number, got 'many'"),
    "a misspelt component": (["optimizer=torch.optim.AdmaW"], "did you mean 'AdamW'?"),
    "a misspelt argument": (["objective.alfa=0.9"], "did you mean 'alpha'?"),
    "an impossible argument": (["objective.alpha=2"], "alpha must lie in [0, 1], got 2"),
    "a part that the model lacks": (["trainable=[adapter]"], "the model has no part 'adapter'"),
    "a part that nothing has": (["trainable=[visoin]"], "did you mean 'vision'?"),
    "a rate for a frozen part": (["learning_rates.decoder=0.1"], "learning_rates.decoder: this run trains"),
    "no checkpoint there": (["checkpoint=/absent"], "no weights at /absent"),
    "no tokenizer there": (["transform.path=/absent"], "/absent"),
    "no config there": (["--config"], "--config"),
    "another method": (["objective=medtune.objectives.SFT"], "SFT"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_status_two(case: str, recipe: Recipe) -> None:
    overrides, sentence = BAD[case]
    status, said = recipe("instfree", *overrides)
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert status == 2 and len(lines) == 1 and sentence in lines[0], said
    assert "Traceback" not in said


def test_a_base_of_another_shape_or_damaged_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    assert recipe("instfree", "max_steps=1", "export=hf")[0] == 0
    base = tmp_path / "run" / "weights"
    status, said = recipe("instfree", f"checkpoint={base}", "model.decoder_layers=4", f"output_dir={tmp_path / 'a'}")
    assert status == 2 and f"{base / 'config.json'} describes another model" in said
    status, said = recipe("instfree", f"checkpoint={base}", "model.embed_dim=32", f"output_dir={tmp_path / 'a'}")
    assert status == 2 and f"{base / 'config.json'} describes another model" in said
    (base / "config.json").unlink()
    status, said = recipe("instfree", f"checkpoint={base}", "model.decoder_layers=4", f"output_dir={tmp_path / 'a'}")
    assert status == 2 and "missing" in said and str(base) in said
    status, said = recipe("instfree", f"checkpoint={base}", "model.embed_dim=32", f"output_dir={tmp_path / 'a'}")
    assert status == 2 and f"{base} does not hold the weights of mini_vlm" in said
    file = base / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    status, said = recipe("instfree", f"checkpoint={base}", f"output_dir={tmp_path / 'b'}")
    assert status == 2 and str(file) in said and "download it again" in said


def test_a_run_is_not_continued_with_another_model(recipe: Recipe) -> None:
    assert recipe("instfree", "max_steps=1")[0] == 0
    status, said = recipe("instfree", "max_steps=2", "model.embed_dim=32")
    assert status == 2 and "belongs to another run" in said and "model.embed_dim: 16 there, 32 here" in said
    assert recipe("instfree", "max_steps=1")[0] == 0, "the refused start has harmed nothing"


def test_a_lone_comma_is_a_separator(recipe: Recipe, tmp_path: Path) -> None:
    assert recipe("instfree", "objective.shuffle_separator=,", "max_steps=1")[0] == 0
    assert load_config(str(tmp_path / "run" / "config.yaml"), TrainConfig).objective["shuffle_separator"] == ","


def test_text_mode_needs_one_override(recipe: Recipe) -> None:
    assert recipe("instfree", "objective.mode=text", "max_steps=1")[0] == 0


def test_sft_full_and_lora_in_the_published_layout(recipe: Recipe, tmp_path: Path) -> None:
    assert recipe("sft", "max_steps=2", "export=hf", **SFT)[0] == 0
    weights = tmp_path / "run" / "weights"
    output = f"output_dir={tmp_path / 'lora'}"
    status, said = recipe(
        "sft", f"checkpoint={weights}", "trainable=[adapter]", output, "export=hf", "max_steps=2", **SFT, model=LORA
    )
    assert status == 0, said
    model = instantiate(tiny(tmp_path).model)
    full, merged = load_weights(weights, model), load_weights(tmp_path / "lora" / "weights", model)
    moved = {name for name in full if not torch.equal(full[name], merged[name])}
    assert moved and all(".attn." in name or ".mlp." in name for name in moved)
    assert (tmp_path / "lora" / "weights" / "config.json").read_text() == (weights / "config.json").read_text()


def test_help_lists_the_keys(capsys: pytest.CaptureFixture[str]) -> None:
    importlib.import_module("medtune.recipes.sft").main(["--help"])
    said = capsys.readouterr().out
    assert "usage: tune run medtune/recipes/sft.py --config" in said and "early_stopping_patience" in said
    assert "device: Literal['auto', 'cpu', 'cuda'] (default 'auto')" in said and "dataset_val: Component | None" in said


def test_the_line_of_torchao_about_its_kernels_is_not_shown() -> None:
    script = "import medtune.recipes.sft"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=dict(os.environ))
    assert result.returncode == 0 and result.stderr == ""
