"""The threshold recipe: from routed answers and verdicts to a number, a table and a plot."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from medtune.evaluation.prediction import Prediction, write_predictions
from tests.routing.validation_files import CORRECT, write_routed, write_verdicts


@pytest.fixture(scope="module")
def recipe(checkout: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("threshold_recipe", checkout / "recipes" / "router_threshold.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    write_routed(tmp_path / "predictions.jsonl")
    folders = {name: tmp_path / name for name in CORRECT}
    write_verdicts(folders)
    text = "routed: x\nadapters: {counting: x, all: x}\nfallback: all\noutput_dir: x\n"
    (tmp_path / "config.yaml").write_text(text)
    adapters = [f"adapters.{name}={folder}" for name, folder in folders.items()]
    config = ["--config", str(tmp_path / "config.yaml")]
    return [*config, f"routed={tmp_path}/predictions.jsonl", *adapters, f"output_dir={tmp_path}/out"]


def test_the_best_threshold_is_written_printed_and_drawn(recipe, arguments, tmp_path, capsys) -> None:
    assert recipe.main(arguments) == 0
    found = json.loads((tmp_path / "out" / "threshold.json").read_text())
    assert found["best"] == {"threshold": pytest.approx(0.7), "value": 0.8, "own": 0.4}
    assert [point["value"] for point in found["known"]] == [pytest.approx(0.4), pytest.approx(0.6)]
    assert found["always_fallback"]["value"] == found["always_own"]["value"] == 0.4
    assert len((tmp_path / "out" / "threshold.csv").read_text().splitlines()) == 1 + 6
    assert "<svg" in (tmp_path / "out" / "threshold.svg").read_text()
    assert "0.700    80.0%        40.0%  best" in capsys.readouterr().out
    assert recipe.main([*arguments, "column=measure:f1"]) == 0
    assert json.loads((tmp_path / "out" / "threshold.json").read_text())["best"]["value"] == 0.4


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("column", "has no column 'dice'"),
        ("missing", "lacks 1 of the routed answers (first: 'q4')"),
        ("number", "answer 'q1' has no number from 0 to 1"),
        ("folder", "evaluate the adapter's answers first"),
        ("routes", "answer 'q0' has no route with a score"),
        ("fallback", "the fallback 'mt' is not among the adapters"),
    ],
)
def test_files_that_do_not_fit_are_refused(recipe, arguments, tmp_path, capsys, damage, message) -> None:
    verdicts = tmp_path / "all" / "verdicts.csv"
    if damage == "missing":
        verdicts.write_text("".join(verdicts.read_text().splitlines(keepends=True)[:-1]))
    elif damage == "number":
        verdicts.write_text(verdicts.read_text().replace("q1,0", "q1,many"))
    elif damage == "folder":
        verdicts.unlink()
    elif damage == "routes":
        write_predictions(tmp_path / "predictions.jsonl", [Prediction("q0", "prompt", "?", "7", (), {})])
    more = {"column": ["column=dice"], "fallback": ["fallback=mt"]}.get(damage, [])
    assert recipe.main([*arguments, *more]) == 2
    said = capsys.readouterr().err
    assert message in said and "many" not in said and not (tmp_path / "out").exists()
