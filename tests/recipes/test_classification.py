"""Classification sets from their owners' files to a report: prepare, sft, predict, evaluate, on a tiny model."""

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from medtune.cli.main import main as medtune
from medtune.evaluation.prediction import read_predictions, write_predictions
from medtune.recipes import evaluate, predict, prepare, sft
from tests.datasets.medmnist_files import write_medmnist
from tests.runs import SFT, TINY

ASKED = ["protocols=[classification]", "swapped=[classification]"]


def tiny_config(path: Path, **changes: object) -> str:
    values = {"model": TINY["model"], "transform": {**TINY["transform"], "path": "${asset:mini_tokenizer}"}, **changes}
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(json.loads(json.dumps(values)))))
    return str(path)


@pytest.mark.parametrize("config", ["medmnist", "medmnist_without_classes"])
def test_from_the_owners_files_to_a_report(config: str, tmp_path: Path) -> None:
    for name in ("chest", "retina", "breast"):
        write_medmnist(tmp_path / "owners", name)
    prepared, run, answers = tmp_path / "prepared", tmp_path / "run", tmp_path / "answers"
    call = ["--config", f"prepare/{config}", f"data.files={tmp_path / 'owners'}", f"output_dir={prepared}"]
    assert prepare.main(call) == 0
    rows = {"_component_": "medtune.datasets.jsonl_dataset", "image_root": str(prepared / "images.tar")}
    train = {key: TINY[key] for key in ("optimizer", "trainable", "dtype", "device", "export", "seed")}
    train |= {"objective": SFT["objective"], "dataset": {**rows, "source": str(prepared / "train.jsonl")}}
    train |= {"max_steps": 2, "batch_size": 2, "output_dir": str(run)}
    assert sft.main(["--config", tiny_config(tmp_path / "train.yaml", **train)]) == 0
    ask = {"questions": {**rows, "source": str(prepared / "test.jsonl")}, "checkpoint": str(run / "weights")}
    ask |= {"output_dir": str(answers), "max_new_tokens": 4, "dtype": "fp32", "device": "cpu"}
    assert predict.main(["--config", tiny_config(tmp_path / "ask.yaml", **ask), *ASKED]) == 0
    found = read_predictions(answers / "predictions.jsonl")
    assert len(found) == 2 * 18 and {row.task for row in found} == {"classification"}
    prompts = {row.meta["set"]: row.prompt for row in found}
    listed = "The possible diagnoses are: malignant; normal, benign." in prompts["breast"]
    assert listed == (config == "medmnist") and len(prompts) == 3

    score = ["--config", "evaluate/default", f"prepared_dir={prepared}", *ASKED, "bootstrap_draws=50"]
    model = [f"predictions={answers}/predictions.jsonl", f"output={tmp_path / 'model'}"]
    assert evaluate.main([*score, *model]) == 0
    right = [json.loads(line) for line in (prepared / "test.jsonl").read_text().splitlines()]
    texts = {row["id"]: row["messages"][1]["content"] for row in right}
    best = [
        row.__class__(row.id, row.task, row.prompt, texts[row.meta["sample_id"]], row.references, row.meta)
        for row in found
    ]
    write_predictions(tmp_path / "best.jsonl", best)
    assert evaluate.main([*score, f"predictions={tmp_path}/best.jsonl", f"output={tmp_path / 'best'}"]) == 0
    numbers = json.loads((tmp_path / "best/results.json").read_text())["protocols"]["classification"]
    assert numbers["overall"]["f1_macro"]["value"] == numbers["overall"]["accuracy_macro"]["value"] == 1.0
    assert numbers["attributes"]["retina"]["quadratic_kappa"]["value"] == 1.0
    page = tmp_path / "page/report.html"
    folders = [str(tmp_path / "model"), str(tmp_path / "best")]
    shown = ["--images", str(prepared / "images.tar"), "--samples", "2"]
    assert medtune(["report", *folders, "--out", str(page), *shown]) == 0
    assert "Macro-F1, mean over sets" in page.read_text() and "image could not be opened" not in page.read_text()
