"""Each data set from its owners' files to a report: prepare, instfree, predict, evaluate, on a tiny model."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from medtune.cli.main import main as medtune
from medtune.recipes import evaluate, instfree, predict, prepare
from tests.recipes.doors import DOORS
from tests.runs import TINY

PROTOCOLS = "protocols=[multiple_choice,letter_likelihood,open]"


def tiny_config(path: Path, **changes: object) -> str:
    values = {"model": TINY["model"], "transform": {**TINY["transform"], "path": "${asset:mini_tokenizer}"}, **changes}
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(json.loads(json.dumps(values)))))
    return str(path)


@pytest.mark.parametrize("door", DOORS)
def test_from_the_owners_files_to_a_report(
    door: Callable[[Path, Path], list[str]], medtune_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = door(tmp_path, medtune_data)
    prepared, run, answers = tmp_path / "prepared", tmp_path / "run", tmp_path / "answers"
    assert prepare.main([*call, f"output_dir={prepared}"]) == 0
    root = next(part for part in call if part.startswith("image_root=")).removeprefix("image_root=")
    rows = {"_component_": "medtune.datasets.jsonl_dataset", "image_root": root, "pad_to_square": 16}
    train = {key: TINY[key] for key in ("objective", "optimizer", "trainable", "dtype", "device", "export", "seed")}
    if door.__name__ == "mimic_cxr":
        train["objective"] = {**train["objective"], "shuffle_separator": None, "shuffle_unit": "section"}
    train |= {"dataset": {**rows, "source": str(prepared / "train.jsonl")}, "max_steps": 2, "batch_size": 2}
    assert instfree.main(["--config", tiny_config(tmp_path / "train.yaml", **train, output_dir=str(run))]) == 0
    ask = {"questions": {**rows, "source": str(prepared / "test.jsonl")}, "checkpoint": str(run / "weights")}
    config = tiny_config(tmp_path / "ask.yaml", **ask, output_dir=str(answers), swapped=[], max_new_tokens=4, limit=6)
    assert predict.main(["--config", config, PROTOCOLS]) == 0
    files = [f"predictions={answers}/predictions.jsonl", f"prepared_dir={prepared}", f"output={tmp_path / 'results'}"]
    assert evaluate.main(["--config", "evaluate/default", *files, PROTOCOLS, "swapped=[]", "limit=6"]) == 0
    report = tmp_path / "report.html"
    assert medtune(["report", str(tmp_path / "results"), "--out", str(report), "--images", root, "--samples", "2"]) == 0
    results = json.loads((tmp_path / "results/results.json").read_text())
    asked = [json.loads(line) for line in (answers / "predictions.jsonl").read_text().splitlines()]
    assert len(asked) == 18 and len({row["meta"]["sample_id"] for row in asked}) == 6
    assert "letter_likelihood" in json.dumps(results) and report.stat().st_size > 10_000
