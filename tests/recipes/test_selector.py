"""Training of the selection model by its recipe: it learns, goes on after a kill to the bit, and is read again."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medtune.config import load_config
from medtune.errors import ModelError
from medtune.models.selector.builders import load_selector
from medtune.training.config import TrainConfig
from medtune.training.plan import plan
from tests.curation.selector_data import (
    conversation,
    rows_of,
    selector,
    selector_pairs,
    training,
    write_lines,
    write_preferences,
)
from tests.recipe_modules import load_recipe
from tests.runs import die_at, largest_difference, launch, losses, metrics, weights


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("preferences")
    assert selector_pairs(*write_preferences(folder), "validation_share=0.4") == 0
    return folder


def config(prepared: Path, folder: Path, *more: str) -> TrainConfig:
    words = [*training(prepared)[1:], f"output_dir={folder}", "max_steps=8", *more]
    return load_config("selector/features", TrainConfig, words)


@pytest.fixture(scope="module")
def plain(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    assert launch(config(prepared, folder)) == [0]
    return folder


def test_it_learns_and_its_measures_and_page_are_written(prepared: Path, tmp_path: Path) -> None:
    words = [word for word in training(prepared) if not word.startswith("output_dir")]
    assert selector(*words, f"output_dir={tmp_path / 'run'}", "epochs=3") == 0
    found = json.loads((tmp_path / "run/selection.json").read_text())
    assert found["measures"]["accuracy"]["value"] > 0.9 and found["measures"]["auc"]["value"] > 0.9
    assert found["sources"] == {"human": found["pairs"]} and found["top"]["k_percent"][0] == 5
    page = (tmp_path / "run/selection.html").read_text()
    assert "Order of pairs" in page and "good 1" not in page
    rows = (tmp_path / "run/pair_scores.csv").read_text().splitlines()
    assert rows[0] == "id,source,preferred,rejected" and len(rows) == found["pairs"] + 1


def test_a_killed_run_goes_on_to_the_bit(plain: Path, prepared: Path, tmp_path: Path) -> None:
    assert launch(config(prepared, tmp_path, "save_every_steps=2"), harm=die_at(5)) == [9]
    assert launch(config(prepared, tmp_path, "save_every_steps=2")) == [0]
    late = [[line for line in metrics(folder) if line["step"] > 6] for folder in (plain, tmp_path)]
    assert late[0] == late[1] and late[0]
    assert largest_difference(weights(plain), weights(tmp_path)) == 0.0


def test_two_processes_and_accumulation_are_one_process(prepared: Path, tmp_path: Path) -> None:
    sgd = "optimizer={_component_: torch.optim.SGD, lr: 0.1}"
    runs = {"one": [], "two": ["batch_size=8"], "accumulated": ["batch_size=4", "gradient_accumulation_steps=4"]}
    for name, changes in runs.items():
        world = 2 if name == "two" else 1
        same = ["max_steps=4", "log_every_steps=1", "weight_decay=0"][:2]
        assert launch(config(prepared, tmp_path / name, sgd, *same, *changes), world) == [0] * world
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "one"), abs=1e-6)
        assert largest_difference(weights(tmp_path / "one"), weights(tmp_path / name)) < 1e-6


def test_a_trained_model_is_read_with_what_its_features_were_made_of(plain: Path, prepared: Path) -> None:
    model = load_selector(plain / "weights")
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
    kept = json.loads((plain / "weights/config.json").read_text())
    assert kept["model_type"] == "medtune_selector" and kept["parts"] == [8, 8] and kept["hidden"] == [16]
    assert kept["inputs"]["features"]["name"] == "stored" and kept["inputs"]["text_limit"] == 4000
    features = torch.from_numpy(np.load(prepared / "features.npy")[:3])
    assert model.scores({"features": features}).shape == (3,)
    with pytest.raises(ModelError, match="holds no selection model"):
        load_selector(prepared)


def test_features_that_are_another_pairs_folders_are_refused(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert selector_pairs(*write_preferences(tmp_path, rated=0), "model_pairs=0", "text_limit=200") == 0
    words = [word for word in training(prepared) if not word.startswith("output_dir")]
    assert selector(*words, f"output_dir={tmp_path / 'run'}", f"transform.folder={tmp_path / 'pairs'}") == 2
    assert "transform and model read different inputs" in capsys.readouterr().err
    assert selector(*words, f"output_dir={tmp_path / 'run'}", f"model.features={tmp_path}") == 2
    assert "holds no features" in capsys.readouterr().err


def test_another_method_or_switch_is_refused(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for word in training(prepared) if not word.startswith("output_dir")]
    assert selector(*words, f"output_dir={tmp_path}", "compile=true") == 2
    assert "the selection model is trained without" in capsys.readouterr().err
    main: Any = load_recipe("selector").main
    assert main(["--config", "sft/mini", f"output_dir={tmp_path}"]) == 2
    assert "this recipe trains Selection" in capsys.readouterr().err


@pytest.mark.slow
def test_weights_are_compared_over_seeds_and_a_second_start_goes_on(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main: Any = load_recipe("selector_weights").main
    own = [word for word in training(prepared) if not word.startswith(("output_dir", "objective", "epochs"))]
    words = ["--config", "selector_weights/table1", f"output_dir={tmp_path}", "weights=[5]", "seeds=[0,1]",
             f"overrides={json.dumps([*own, 'max_steps=3'])}"]  # fmt: skip
    assert main(words) == 0
    found = json.loads((tmp_path / "weights.json").read_text())
    assert list(found["rows"]) == ["5"] and len(found["rows"]["5"]["accuracy"]["by_seed"]) == 2
    alone = json.loads((tmp_path / "w_5_seed_1/selection.json").read_text())["measures"]["auc"]["value"]
    assert found["rows"]["5"]["auc"]["by_seed"][1] == alone
    kept = load_config(str(tmp_path / "w_5_seed_1/config.yaml"), TrainConfig)
    assert kept.objective["human_weight"] == 5 and kept.seed == 1
    page = (tmp_path / "weights.html").read_text()
    assert "Weight of human preferences" in page and "mean rank, %" in page
    logged = (tmp_path / "w_5_seed_0/metrics.jsonl").read_text()
    capsys.readouterr()
    assert main(words) == 0
    assert (tmp_path / "w_5_seed_0/metrics.jsonl").read_text() == logged, "no step was trained again"
    assert main([*words, "weights=[0]"]) == 2 and "weights must be above 0" in capsys.readouterr().err


def test_the_plan_shows_the_parts_and_says_what_is_missing(prepared: Path) -> None:
    words = [word for word in training(prepared) if not word.startswith("output_dir")]
    found = plan("selector/features", [*words, "device=cpu"])
    assert found.problems == [] and "head" in found.text()
    absent = plan("selector/features")
    assert any("run the recipe selector_pairs" in problem for problem in absent.problems)


def whole(prepared: Path, folder: Path, *more: str) -> list[str]:
    """Words of a run that trains a small CLIP model as a whole."""
    return [
        f"output_dir={folder / 'run'}", f"dataset.source={prepared / 'pairs/train.jsonl'}",
        f"dataset_val.source={prepared / 'pairs/val.jsonl'}", f"dataset.image_root={prepared / 'images'}",
        f"dataset_val.image_root={prepared / 'images'}", "model.model=ViT-S-32-alt", "model.hidden=[8]", "max_steps=1",
        "batch_size=2", "gradient_accumulation_steps=1", "num_workers=0", "device=cpu", "preflight_cache=null", *more,
    ]  # fmt: skip


@pytest.mark.slow
def test_a_clip_model_is_trained_as_a_whole_and_selects(tmp_path: Path) -> None:
    pytest.importorskip("open_clip")
    from PIL import Image

    words = write_preferences(tmp_path, human=6, rated=0)
    assert selector_pairs(*words, "model_pairs=0", "features=null", "validation_share=0.3") == 0
    (tmp_path / "images").mkdir()
    for number in range(6):
        Image.new("RGB", (32, 32), (40 * number, 9, 9)).save(tmp_path / "images" / f"{number}.png")
    main: Any = load_recipe("selector").main
    assert main(["--config", "selector/biomed_clip_whole", *whole(tmp_path, tmp_path)]) == 0
    trained = load_selector(tmp_path / "run/weights")
    assert {name.partition(".")[0] for name, _ in trained.named_parameters()} == {"backbone", "head"}
    data = write_lines(tmp_path / "rows.jsonl", [conversation(number) for number in range(6)])
    choose: Any = load_recipe("selection").main
    assert choose([
        "--config", "selection/whole", f"data={data}", f"image_root={tmp_path / 'images'}",
        f"weights={tmp_path / 'run/weights'}", f"output_dir={tmp_path / 'selection'}", "clusters={count: 2}",
    ]) == 0  # fmt: skip
    assert len(rows_of(tmp_path / "selection/selected.jsonl")) == 3
