"""The predict recipe: what it writes, how it goes on after a kill, what it refuses."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from medtune.config import load_config
from medtune.config.composition import packaged_configs
from medtune.generation.engine.generator import Generator
from medtune.models.mini import mini_vlm
from tests.recipes.small_inputs import of_model, write_model, write_pictures, write_questions

CHECKOUT = Path(__file__).resolve().parents[2]


def load_recipe(checkout: Path):
    spec = importlib.util.spec_from_file_location("predict_recipe", checkout / "recipes" / "predict.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["predict_recipe"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def recipe(checkout: Path):
    return load_recipe(checkout)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Tokenizer, random weights, and six questions on three pictures."""
    folder = tmp_path_factory.mktemp("world")
    write_model(folder)
    write_pictures(folder, 3)
    write_questions(folder, 3)
    return folder


def arguments(world: Path, output: Path, *more: str) -> list[str]:
    return [
        "--config", "predict/mini", f"output_dir={output}", *of_model(world), f"questions.source={world}/test.jsonl",
        f"questions.image_root={world}", "batch_size=3", "window=2", "max_new_tokens=5", "device=cpu", *more,
    ]  # fmt: skip


def rows(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "predictions.jsonl").read_text().splitlines()]


def test_every_query_is_answered_once(recipe, world, output, capsys):
    assert recipe.main(arguments(world, output)) == 0
    found = rows(output)
    assert Counter(row["task"] for row in found) == {
        "multiple_choice": 12, "open": 12, "letter_likelihood": 6, "yes_no": 6, "description": 3,
    }  # fmt: skip
    assert len({row["id"] for row in found}) == len(found)
    for row in found:
        scored = row["task"] == "letter_likelihood"
        assert ("scores" in row["meta"]) == scored
        assert len(row["meta"].get("scores", [])) == (3 if scored else 0)
        assert bool(row["prediction"]) != scored or row["meta"]["stopped"]
    summary = json.loads((output / "predictions.summary.json").read_text())
    assert (summary["queries"], summary["answered"], summary["skipped"]) == (39, 39, [])
    printed = capsys.readouterr()
    assert "39 of 39 queries answered" in printed.out
    assert "What is the" not in printed.out + printed.err, "questions are not printed"


def test_questions_on_one_picture_share_its_encoding(recipe, world, output):
    recipe.main(arguments(world, output, "window=20"))
    assert json.loads((output / "predictions.summary.json").read_text())["images_encoded"] == 3


def interrupt_after(monkeypatch, batches: int) -> None:
    """The process dies while it waits for a batch."""
    original = Generator.batches

    def dying(self, *args, **kwargs):
        for number, batch in enumerate(original(self, *args, **kwargs)):
            if number == batches:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(Generator, "batches", dying)


def test_a_killed_run_goes_on_and_ends_with_the_same_file(recipe, world, tmp_path, monkeypatch, capsys):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    recipe.main(arguments(world, whole))
    with monkeypatch.context() as patch:
        interrupt_after(patch, batches=4)
        assert recipe.main(arguments(world, killed)) == 130
    assert len(rows(killed)) == 12
    asked: list[str] = []
    original = Generator._answer
    monkeypatch.setattr(
        Generator, "_answer", lambda self, batch: asked.extend(r.id for r in batch.requests) or original(self, batch)
    )
    assert recipe.main(arguments(world, killed)) == 0
    assert (killed / "predictions.jsonl").read_bytes() == (whole / "predictions.jsonl").read_bytes()
    assert len(asked) == 27, "answered queries are not asked again"
    capsys.readouterr()
    assert recipe.main(arguments(world, killed)) == 0
    assert "0 now" in capsys.readouterr().out


def test_a_torn_last_line_is_cut_and_answered_again(recipe, world, output, capsys):
    recipe.main(arguments(world, output, "protocols=[open]", "swapped=[]"))
    path = output / "predictions.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    capsys.readouterr()
    assert recipe.main(arguments(world, output, "protocols=[open]", "swapped=[]")) == 0
    captured = capsys.readouterr()
    assert "cut off a torn last line" in captured.err
    assert "6 of 6 queries answered" in captured.out and "(1 now" in captured.out
    again = rows(output)
    assert [row["prediction"] for row in again] == [json.loads(line)["prediction"] for line in whole.splitlines()]


def test_another_model_is_not_mixed_in(recipe, world, output, tmp_path, capsys):
    few = ["protocols=[open]", "swapped=[]"]
    recipe.main(arguments(world, output, *few))
    before = (output / "predictions.jsonl").read_bytes()
    torch.manual_seed(3)
    save_file(
        mini_vlm(300, image_size=16, embed_dim=32, vision_layers=2).state_dict(), tmp_path / "weights.safetensors"
    )
    assert recipe.main(arguments(world, output, *few, f"checkpoint={tmp_path}/weights.safetensors")) == 2
    assert "weights.weights.safetensors.sha256" in capsys.readouterr().err
    assert recipe.main(arguments(world, output, *few, "max_new_tokens=6")) == 2
    assert "config.max_new_tokens: 5 before, 6 now" in capsys.readouterr().err
    assert recipe.main(arguments(world, output, *few, "batch_size=2")) == 0
    assert (output / "predictions.jsonl").read_bytes() == before


def test_a_broken_image_stops_the_run_or_is_counted(recipe, world, output, tmp_path, capsys):
    shutil.copytree(world, tmp_path / "copy")
    (tmp_path / "copy" / "cell1.png").write_bytes(b"no image")
    options = [f"questions.image_root={tmp_path}/copy", "protocols=[open]", "swapped=[]"]
    assert recipe.main(arguments(world, output / "a", *options)) == 2
    assert "cell1.png" in capsys.readouterr().err
    assert recipe.main(arguments(world, output / "b", *options, "on_error=skip")) == 0
    summary = json.loads((output / "b" / "predictions.summary.json").read_text())
    assert [skip["id"] for skip in summary["skipped"]] == ["q2/open", "q3/open"]
    assert all("cell1.png" in skip["reason"] for skip in summary["skipped"])
    assert summary["answered"] == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["max_new_token=3"], "max_new_tokens"),
        (["batch_size=0"], "batch_size must be at least 1"),
        (["protocols=[opn]", "swapped=[]"], "unknown protocol 'opn'"),
        (["swapped=[yes_no]", "protocols=[open]"], "'yes_no' is listed under 'swapped'"),
        (["sampling={temperature: 0}"], "temperature"),
        (["checkpoint=/nowhere"], "/nowhere"),
        (["questions.source=/nowhere.jsonl"], "/nowhere.jsonl"),
        (["model.embed_dim=64"], "does not fit"),
        (["device=cuda"], "no GPU"),
    ],
)
def test_bad_settings_are_one_line(recipe, world, output, capsys, options, message):
    if options == ["device=cuda"] and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert recipe.main(arguments(world, output, *options)) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and error.startswith("error: ") and len(error.splitlines()) == 1
    assert not (output / "predictions.jsonl").is_file() or not (output / "predictions.jsonl").read_bytes()


def test_sampled_answers_differ_from_greedy_and_repeat(recipe, world, tmp_path):
    few = ["protocols=[open]", "swapped=[]"]
    drawn = [*few, "sampling={temperature: 1.5, top_k: 50, seed: 1}"]
    for name, options in {"greedy": few, "one": drawn, "two": [*drawn, "batch_size=2"]}.items():
        assert recipe.main(arguments(world, tmp_path / name, *options)) == 0
    texts = {name: {r["id"]: r["prediction"] for r in rows(tmp_path / name)} for name in ("greedy", "one", "two")}
    assert texts["one"] == texts["two"] != texts["greedy"]


@pytest.mark.parametrize("name", [name.split("/")[1] for name in packaged_configs() if name.startswith("predict/")])
def test_packaged_configs_are_valid(recipe, name):
    config = load_config(f"predict/{name}", recipe.PredictConfig)
    assert set(config.swapped) <= set(config.protocols)


@pytest.mark.slow
def test_tune_run_starts_it_from_anywhere(world, output):
    command = [str(Path(sys.executable).with_name("tune")), "run", "medtune/recipes/predict.py"]
    run = subprocess.run(
        [*command, *arguments(world, output, "protocols=[open]", "swapped=[]")],
        cwd="/", capture_output=True, text=True, timeout=250, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert len(rows(output)) == 6
