"""From the owners' files of VQA-RAD to scores, by the recipes: prepare, predict, evaluate."""

import json

import numpy as np
import pytest
from PIL import Image

from medtune.recipes import evaluate, predict, prepare
from tests.recipes.test_predict import arguments, world  # noqa: F401

ASKED = [("Yes", "CLOSED", "PRES", "Is it there?"), ("left lobe", "OPEN", "POS", "Where is it?")]


@pytest.fixture
def prepared(tmp_path):
    """Three images with two questions each in the test split, and one of them in training."""
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 20, 3), dtype=np.uint8)
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    rows = [
        {"qid": 2 * number + at, "image_name": f"{number}.png", "image_organ": "HEAD", "phrase_type": "freeform"}
        | {"answer": answer, "answer_type": form, "question_type": kind, "question": asked}
        for number in range(3)
        for at, (answer, form, kind, asked) in enumerate(ASKED)
    ]
    (tmp_path / "test.json").write_text(json.dumps(rows))
    (tmp_path / "train.json").write_text(json.dumps([rows[0] | {"image_name": "0.png", "question": "Is it?"}]))
    told = [f"data.train={tmp_path}/train.json", f"data.test={tmp_path}/test.json", f"image_root={tmp_path}/images"]
    assert not prepare.main(["--config", "prepare/vqa_rad", *told, f"output_dir={tmp_path}/prepared"])
    return tmp_path / "prepared"


def test_free_questions_are_asked_and_scored(world, prepared, tmp_path, capsys):  # noqa: F811
    out = tmp_path / "run"
    told = [f"questions.source={prepared}/test.jsonl", f"questions.image_root={tmp_path}/images"]
    words = arguments(world, out, "protocols=[vqa]", "swapped=[vqa]", "questions.center_crop=1.0", *told)
    assert predict.main(words) == 0
    rows = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 12 and {row["task"] for row in rows} == {"vqa"}
    assert {row["prompt"] for row in rows} == {"Is it there?", "Where is it?"}
    assert all("options" not in row["meta"] for row in rows)
    scored = [f"predictions={out}/predictions.jsonl", f"prepared_dir={prepared}", f"output={out}"]
    assert not evaluate.main(["--config", "evaluate/vqa", *scored, "bootstrap_draws=20"])
    results = json.loads((out / "results.json").read_text())
    overall = results["protocols"]["vqa"]["overall"]
    assert (overall["open_recall_micro"]["n"], overall["closed_accuracy_micro"]["n"]) == (3, 3)
    assert list(results["protocols"]["vqa"]["attributes"]) == ["POS", "PRES"]
    assert results["protocols"]["vqa"]["swapped"]["drop_macro"]["n"] == 3
    said = capsys.readouterr().out
    assert "VQA, closed," in said and "strict" in said, "headings are wrapped"
