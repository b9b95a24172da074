"""The predict recipe with a base, adapters and a router: routes are written, a run goes on, likelihoods are scored."""

import csv
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from omegaconf import OmegaConf

from tests.recipes.small_inputs import write_pictures, write_rows
from tests.recipes.test_predict import load_recipe
from tests.routing.test_backend import LORA, QUESTIONS, SIZES, TASKS, make_adapter, mini, randomised, save_hf, torch


@pytest.fixture(scope="module")
def recipe(checkout: Path) -> ModuleType:
    return load_recipe(checkout)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Base, adapters, questions and a config."""
    folder = tmp_path_factory.mktemp("world")
    vocabulary = mini.train_mini_tokenizer(["What is the cell size? big small"], 300, folder / "tokenizer").vocab_size
    torch.manual_seed(4)
    plain = randomised(mini.mini_internvl(vocabulary, decoder="qwen2", **SIZES), 0.2)
    save_hf(plain.state_dict(), plain.family, folder / "base")
    for number, name in enumerate((*TASKS, "all")):
        make_adapter(folder / name, vocabulary, rank=1 + number, base=str(folder / "base"))
    write_pictures(folder, 3)
    rows = []
    for i in range(8):
        task = [*TASKS, "other"][i % 4]
        messages = [{"role": "user", "content": QUESTIONS.get(task, "nonsense")}]
        meta = {"task": task, "attribute": task, "options": ["big", "small"], "answer": "big"}
        rows.append({"id": f"q{i}", "images": [f"cell{i % 3}.png"], "messages": messages, "meta": meta})
    write_rows(folder / "test.jsonl", rows)
    backend = {
        "_component_": "medtune.routing.RoutedModel",
        "model": {
            "_component_": "medtune.models.mini.qlora_mini_internvl", "vocab_size": vocabulary, "decoder": "qwen2",
            **SIZES, **LORA,
        },
        "transform": {
            "_component_": "medtune.models.mini.mini_internvl_transform", "path": str(folder / "tokenizer"),
            "image_size": 16, "patch_size": 4,
        },
        "checkpoint": str(folder / "base"),
        "adapters": {name: str(folder / name) for name in (*TASKS, "all")},
        "router": {"_component_": "tests.routing.test_backend.Words"},
        "fallback": "all",
        "batch_size": 4,
    }  # fmt: skip
    questions = {"_component_": "medtune.datasets.jsonl_dataset", "source": str(folder / "test.jsonl")}
    config = {
        "output_dir": "x", "questions": {**questions, "image_root": str(folder)}, "backend": backend,
        "protocols": ["prompt"], "max_new_tokens": 4, "dtype": "fp32", "device": "cpu",
    }  # fmt: skip
    OmegaConf.save(OmegaConf.create(config), folder / "config.yaml")
    return folder


def rows_of(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "predictions.jsonl").read_text().splitlines()]


def test_every_answer_names_its_route_score_and_adapter(recipe, world, output) -> None:
    arguments = ["--config", str(world / "config.yaml"), f"output_dir={output}"]
    assert recipe.main(arguments) == 0
    notes = {row["meta"]["sample_id"]: row["meta"]["notes"] for row in rows_of(output)}
    expected = {f"q{i}": [*TASKS, "all"][i % 4] for i in range(8)}
    assert {name: note["adapter"] for name, note in notes.items()} == expected
    assert notes["q1"]["route"] == "counting" and notes["q1"]["score"] == pytest.approx(0.9)
    with (output / "predictions.csv").open(encoding="utf-8-sig", newline="") as file:
        table = list(csv.DictReader(file))
    assert {row["id"]: row["adapter"] for row in table} == expected
    assert table[0].keys() >= {"route", "score"}


def test_a_run_goes_on_with_the_same_adapters_only(recipe, world, output, capsys) -> None:
    arguments = ["--config", str(world / "config.yaml"), f"output_dir={output}"]
    assert recipe.main(arguments) == 0
    assert recipe.main([*arguments, "backend.batch_size=2"]) == 0
    assert recipe.main([*arguments, "backend.threshold=0.99"]) == 2
    assert "threshold: 0.5 before, 0.99 now" in capsys.readouterr().err


def test_likelihoods_are_those_of_the_chosen_adapter(recipe, world, output, tmp_path) -> None:
    arguments = ["--config", str(world / "config.yaml"), "protocols=[letter_likelihood]"]
    assert recipe.main([*arguments, f"output_dir={output}"]) == 0
    alone = [f"output_dir={tmp_path}/alone", "backend.mode=single", "backend.adapter=counting"]
    assert recipe.main([*arguments, *alone]) == 0
    pairs = list(zip(rows_of(output), rows_of(tmp_path / "alone"), strict=True))
    for routed, counting in pairs:
        same = routed["meta"]["scores"] == pytest.approx(counting["meta"]["scores"], abs=1e-4)
        assert same == (routed["meta"]["notes"]["adapter"] == "counting")
    assert len(pairs) == 8
