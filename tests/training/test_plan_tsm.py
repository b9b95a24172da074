"""``medtune plan`` of a run that trains a task-specific model: no text, no logits of words, no traceback."""

from pathlib import Path

import pytest

from medtune.cli.main import main as medtune
from medtune.training.plan import Plan, plan
from tests.labelled_pictures import write


def planned(folder: Path, *overrides: str, gpus: int | None = None) -> Plan:
    path = write(folder)
    named = [f"{key}={path}" for key in ("model.sets", "dataset.source", "dataset_val.source")]
    named += [f"{key}.image_root={folder}" for key in ("dataset", "dataset_val")]
    return plan("tsm/mini", [*named, "objective.flip=[cells]", *overrides], gpus)


def test_parts_data_steps_and_memory(tmp_path: Path) -> None:
    found = planned(tmp_path, "epochs=3", "batch_size=16")
    text = found.text()
    assert "vision" in text and "tokens" not in text
    (problem,) = found.problems
    assert "files that are the data of train and of val: 1" in problem, "the test validates on its training data"
    assert "training rows        36" in text and "(36 rows measured, 0 unusable)" in text
    assert "steps                train 9; 9 in all" in text
    assert set(found.memory) == {"weights", "gradients", "optimizer", "activations", "allowance"}


def test_activations_grow_with_the_batch_and_the_picture(tmp_path: Path) -> None:
    small = planned(tmp_path, "batch_size=8", "model.image_size=28", "transform.image_size=28").memory
    more = planned(tmp_path, "batch_size=32", "model.image_size=28", "transform.image_size=28").memory
    wide = planned(tmp_path, "batch_size=8", "model.image_size=56", "transform.image_size=56").memory
    assert more["activations"] == pytest.approx(4 * small["activations"], rel=0.01)
    assert wide["activations"] > 3.5 * small["activations"] and small["weights"] < wide["weights"]
    two = planned(tmp_path, "batch_size=8", gpus=2)
    assert "gathered layers" in two.memory and "Memory on each of 2 GPUs" in two.text()


def test_vit_base_without_data_and_weights_lists_what_is_missing(tmp_path: Path) -> None:
    absent = tmp_path / "prepared"
    where = [f"{key}={absent}/train.jsonl" for key in ("model.sets", "dataset.source")]
    found = plan("tsm/vit_base_distributed", [*where, f"model.pretrained={tmp_path}/model.safetensors"])
    said = " ".join(found.problems)
    assert "classes are not known" in said and "run the prepare recipe" in said
    assert "pretrained weights are not here" in said and "does not exist" in said
    assert found.memory["weights"] == pytest.approx(85.8e6 * 4 / 4, rel=0.01)


def test_the_command_ends_with_sentences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert medtune(["plan", "tsm/mini", f"model.sets={tmp_path}/none.jsonl", f"dataset.source={tmp_path}/none.jsonl"])
    printed = capsys.readouterr()
    assert (
        "does not exist, so the model's classes" in printed.out + printed.err
        and "Traceback" not in printed.out + printed.err
    )
