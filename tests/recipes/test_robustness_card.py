"""The robustness card from the command line: one switch of predict, read by evaluate, shown by the report."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from medtune.cli.main import main as medtune
from medtune.evaluation.robustness import PROBES
from tests.recipe_modules import load_recipe
from tests.recipes.test_predict import arguments, world  # noqa: F401

evaluate = load_recipe("evaluate")


@pytest.fixture
def made(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:  # noqa: F811
    predict = load_recipe("predict")
    protocols = "protocols=[multiple_choice,letter_likelihood,open,yes_no,description]"
    call = arguments(world, tmp_path / "run", protocols, "swapped=[]", "robustness=true")
    assert predict.main(call) == 0
    said = capsys.readouterr().err
    assert "111 queries: as they are 27, swapped 24, no_image 24, options 12, paraphrase 24" in said
    shutil.copy(world / "test.jsonl", tmp_path / "test.jsonl")
    (tmp_path / "training_majority.json").write_text(json.dumps({"cell shape": "round", "nucleus shape": "oval"}))
    call = ["--config", "evaluate/default", f"predictions={tmp_path}/run/predictions.jsonl", f"prepared_dir={tmp_path}"]
    assert evaluate.main([*call, f"output={tmp_path}/run", "bootstrap_draws=20"]) == 0
    return tmp_path


def test_one_switch_gives_the_card_in_the_results_the_table_and_the_page(made: Path, world: Path) -> None:  # noqa: F811
    results = json.loads((made / "run/results.json").read_text())
    card = results["robustness"]
    assert {task: tuple(probes) for task, probes in card.items()} == {
        "multiple_choice": PROBES, "letter_likelihood": PROBES, "open": tuple(p for p in PROBES if p != "options"),
        "yes_no": tuple(p for p in PROBES if p != "options"),
    }  # fmt: skip
    assert results["provenance"]["config"]["robustness"] == list(PROBES)
    rows = list(csv.DictReader((made / "run/robustness.csv").open()))
    assert len(rows) == 84 and {row["probe"] for row in rows} == set(PROBES)
    verdicts = (made / "run/verdicts.csv").read_text()
    assert "/paraphrase" not in verdicts and "/swapped" in verdicts
    shown = ["--samples", "2", "--images", str(world)]
    assert medtune(["report", str(made / "run"), "--out", str(made / "page/report.html"), *shown]) == 0
    page = (made / "page/report.html").read_text()
    assert "Robustness card" in page and "Options in another order" in page


def test_the_plan_says_what_the_card_costs(world: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    given = [f"questions.source={world}/test.jsonl", f"questions.image_root={world}", "swapped=[]",
             "protocols=[multiple_choice,open]"]  # fmt: skip
    assert medtune(["plan", "predict/mini", *given]) == 0
    assert "12 queries: as they are 12 (1.0 times as many)" in capsys.readouterr().out
    assert medtune(["plan", "predict/mini", *given, "robustness=true"]) == 0
    said = capsys.readouterr().out
    assert "54 queries: as they are 12, swapped 12, no_image 12, options 6, paraphrase 12 (4.5 times as many)" in said
    assert "multiple_choice                  6" in said and "3 images are encoded" in said
    assert medtune(["plan", "predict/mini", *given, "robustness=[options]"]) == 0
    assert "18 queries" in capsys.readouterr().out
    assert medtune(["plan", "predict/mini", *given, "robustness=[order]"]) == 2


def test_exemplars_need_an_image_and_say_so(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    predict = load_recipe("predict")
    call = arguments(world, tmp_path / "run", "exemplars.path=x", "robustness=true")
    assert predict.main(call) == 2 and "name probes without no_image" in capsys.readouterr().err
