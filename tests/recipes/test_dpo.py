"""The DPO recipe as users start it: every mini config, one process and two, from another folder."""

import importlib
import json
import math
from pathlib import Path

import pytest

from tests.recipes.test_training_recipes import tune_run
from tests.runs import losses

SHORT = ["max_steps=2", "dataset.size=8", "dataset_val.size=4", "batch_size=4"]


@pytest.mark.parametrize("config", ["mini", "mini_internvl", "mini_llava"])
def test_a_mini_config_trains_and_validates(config: str, tmp_path: Path) -> None:
    run = ["--config", f"dpo/{config}", f"output_dir={tmp_path}", *SHORT]
    assert importlib.import_module("medtune.recipes.dpo").main(run) == 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert "validation_rewards/accuracies" in lines[-1] and (tmp_path / "weights" / "config.json").is_file()
    panels = json.loads((tmp_path / "panels.json").read_text())
    measured = {key for key in lines[0] if key.startswith(("rewards/", "logps/"))}
    assert len(measured) == 6 and measured == {name for names in panels.values() for name in names} - {"sft"}
    assert (tmp_path / "reference" / "validation" / "manifest.json").is_file() == (config == "mini_llava")


@pytest.mark.slow
def test_tune_run_trains_on_two_processes_from_the_root_folder(tmp_path: Path) -> None:
    recipe = "medtune/recipes/dpo.py"
    tune_run(Path("/"), recipe, "--config", "dpo/mini_llava", f"output_dir={tmp_path / 'one'}", *SHORT)
    two = [*SHORT, "batch_size=2", f"output_dir={tmp_path / 'two'}"]
    tune_run(Path("/"), "--nproc_per_node", "2", recipe, "--config", "dpo/mini_llava", *two)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-6)


def test_another_method_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["--config", "sft/mini", f"output_dir={tmp_path}"]
    assert importlib.import_module("medtune.recipes.dpo").main(run) == 2
    assert "this recipe trains DPO, not medtune.objectives.SFT" in capsys.readouterr().err
