"""The task-specific model as users train and ask it: `tune run`, its invariants, predict, evaluate, report."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from safetensors.torch import load_file

from medtune.cli.main import main as medtune
from medtune.config import build
from medtune.recipes import evaluate, predict, prepare, tsm
from medtune.training.config import TrainConfig
from tests.labelled_pictures import TINY_VIT, dataset, rows, write
from tests.runs import SGD, die_at, largest_difference, launch, losses, metrics, weights

CHECKOUT = Path(__file__).resolve().parents[2]
TUNE = Path(sys.executable).parent / "tune"
STEPS = 8


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A tiny run on drawn pictures of three kinds of set; 36 rows in steps of 8, so that the last one is short."""
    path = write(tmp_path_factory.mktemp("drawn"))
    return {
        "model": {
            "_component_": "medtune.models.classifier.tsm.task_model",
            "sets": path,
            "architecture": "vit_tiny_patch16_224",
            "image_size": 8,
            **TINY_VIT,
        },
        "transform": {"_component_": "medtune.models.classifier.tsm.PixelTransform", "image_size": 8},
        "dataset": dataset(path),
        "dataset_val": dataset(path),
        "allow_leakage": ["same_file"],
        "objective": {"_component_": "medtune.objectives.Classification", "flip": ["cells"]},
        "optimizer": SGD,
        "trainable": ["vision"],
        "max_steps": STEPS,
        "batch_size": 8,
        "clip_grad_norm": 1.0,
        "validate_every_steps": 4,
        "dtype": "fp32",
        "device": "cpu",
    }


def run(folder: Path, values: dict[str, Any], world: int = 1, harm: Any = None, **changes: Any) -> list[int]:
    config = build(TrainConfig, {"output_dir": str(folder), **values, **changes}, "test")
    return launch(config, world, harm)


@pytest.fixture(scope="module")
def plain(drawn: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    assert run(folder, drawn) == [0]
    return folder


@pytest.mark.slow
def test_two_processes_accumulation_and_workers_are_one_process(
    plain: Path, drawn: dict[str, Any], tmp_path: Path
) -> None:
    assert run(tmp_path / "two", drawn, world=2, batch_size=4) == [0, 0]
    assert run(tmp_path / "accumulated", drawn, batch_size=2, gradient_accumulation_steps=4) == [0]
    for other in ("two", "accumulated"):
        assert losses(tmp_path / other) == pytest.approx(losses(plain), abs=1e-6)
        assert largest_difference(weights(plain), weights(tmp_path / other)) < 1e-6
    assert run(tmp_path / "workers", drawn, num_workers=2) == [0]
    assert metrics(tmp_path / "workers") == metrics(plain)
    assert losses(plain)[-1] != losses(plain)[0] and all("accuracy" in m for m in metrics(plain) if "loss" in m)


def test_a_killed_run_goes_on_to_the_bit(plain: Path, drawn: dict[str, Any], tmp_path: Path) -> None:
    assert run(tmp_path, drawn, harm=die_at(5), save_every_steps=3) == [9]
    assert run(tmp_path, drawn, save_every_steps=3) == [0]
    later = [line for line in metrics(tmp_path) if line["step"] > 3]
    assert later[-STEPS + 3 :] == [line for line in metrics(plain) if line["step"] > 3][-STEPS + 3 :]
    assert largest_difference(weights(plain), weights(tmp_path)) == 0.0


def test_every_weight_learns(plain: Path, drawn: dict[str, Any], tmp_path: Path) -> None:
    assert run(tmp_path, drawn, max_steps=1, optimizer={"_component_": "torch.optim.SGD", "lr": 1e-12}) == [0]
    first, last = (load_file(folder / "weights" / "model.safetensors") for folder in (tmp_path, plain))
    assert all((first[name] != last[name]).any() for name in first)


def test_a_row_that_cannot_be_learned_is_skipped_and_named(drawn: dict[str, Any], tmp_path: Path) -> None:
    table = rows(1)
    table[4]["meta"] = {}
    path = write(tmp_path / "data", table)
    changes = {"dataset": dataset(path), "dataset_val": None, "max_steps": 1, "validate_every_steps": None}
    assert run(tmp_path / "run", drawn, **changes) == [2]
    said = (tmp_path / "run" / "error_0.txt").read_text()
    assert "DataError: 1 of 9 rows" in said and "chest/0/1" in said
    assert run(tmp_path / "run", drawn, **changes, on_error="skip") == [0]
    assert [one["id"] for one in json.loads((tmp_path / "run/summary.json").read_text())["skipped"]] == ["chest/0/1"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("compile=true", "compile: timm's models are trained without"),
        ("activation_checkpointing=true", "activation_checkpointing: timm's models"),
        ("objective._component_=medtune.objectives.SFT", "this recipe trains Classification"),
        ("transform.image_size=16", "give both the same image_size"),
        ("model.architecture=resnet10t", "batch normalisations|cannot build"),
        ("model.sets=absent.jsonl", "run the prepare recipe"),
    ],
)
def test_what_cannot_be_trained_is_said_in_a_sentence(
    override: str, message: str, drawn: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {**drawn, "objective": {"_component_": "medtune.objectives.Classification"}}
    path = tmp_path / "config.yaml"
    path.write_text(OmegaConf.to_yaml(OmegaConf.create({"output_dir": str(tmp_path / "run"), **config})))
    overrides = [override]
    if "resnet" in override:
        overrides += [f"~model.{name}" for name in TINY_VIT]
    assert tsm.main(["--config", str(path), *overrides]) == 2
    said = capsys.readouterr().err
    assert re.search(message, said) and "Traceback" not in said


@pytest.mark.slow
def test_from_real_pictures_to_a_report_with_its_auc(medtune_data: Path, tmp_path: Path) -> None:
    if not (medtune_data / "medmnist" / "breastmnist.npz").is_file():
        pytest.skip("BreastMNIST is not here")
    prepared, folder, answers = tmp_path / "prepared", tmp_path / "run", tmp_path / "answers"
    some = ["data.sets=[breast]", "data.limit_train=60", "data.limit_questions=30"]
    files = [f"data.files={medtune_data / 'medmnist'}", f"output_dir={prepared}"]
    assert prepare.main(["--config", "prepare/medmnist", *some, *files]) == 0
    given = [f"model.sets={prepared}/train.jsonl", "model.depth=1", "model.embed_dim=16", "objective.flip=[breast]"]
    for split, name in (("dataset", "train"), ("dataset_val", "val")):
        given += [f"{split}.source={prepared}/{name}.jsonl", f"{split}.image_root={prepared}/images.tar"]
    call = ["run", "medtune/recipes/tsm.py", "--config", "tsm/mini", "max_steps=3", f"output_dir={folder}", *given]
    done = subprocess.run([TUNE, *call], cwd=CHECKOUT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    ask = [f"questions.source={prepared}/test.jsonl", f"questions.image_root={prepared}/images.tar", "device=cpu"]
    ask += [f"backend.path={folder}/weights", f"output_dir={answers}"]
    assert predict.main(["--config", "predict/tsm_mini", *ask]) == 0
    score = [f"predictions={answers}/predictions.jsonl", f"prepared_dir={prepared}", f"output={answers}"]
    assert evaluate.main(["--config", "evaluate/classification", *score, "bootstrap_draws=50"]) == 0
    numbers = json.loads((answers / "results.json").read_text())["protocols"]["classification"]["attributes"]["breast"]
    assert numbers["accuracy"]["n"] == 30 and numbers["out_of_vocabulary"]["value"] == 0
    assert 0 <= numbers["auc_macro"]["value"] <= 1
    page = tmp_path / "page" / "report.html"
    assert medtune(["report", str(answers), "--out", str(page)]) == 0
    assert "AUC" in page.read_text()
