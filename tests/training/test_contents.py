"""A run's identity by content: the tokenizer's files and what is frozen beside the model."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from medtune.training.contents import content_files, run_contents
from tests.reliability.faults import said
from tests.runs import SGD, die_at, launch, tiny
from tests.tiny_task import write_task, write_tsm

SAVES: dict[str, Any] = {"save_every_steps": 2, "max_steps": 4, "objective": {"warmup_steps": 0}}


def with_tokenizer(folder: Path, tokenizer: Path, **changes: Any) -> Any:
    config = tiny(folder, **SAVES, **changes)
    config.transform["path"] = str(tokenizer)
    return config


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny(tmp_path).transform["path"], tmp_path / "tokenizer"))


def swap_two_words(folder: Path) -> None:
    """Two ids change places: the same file size, and no error anywhere."""
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    vocab = content["model"]["vocab"]
    first, second = [word for word in vocab if word.isalpha() and len(word) > 3][:2]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    file.write_text(json.dumps(content))


def test_a_tokenizer_that_changes_between_runs_is_refused(tokenizer: Path, tmp_path: Path) -> None:
    config = with_tokenizer(tmp_path / "run", tokenizer)
    assert launch(config, harm=die_at(3)) == [9]
    before = (tokenizer / "tokenizer.json").read_bytes()
    swap_two_words(tokenizer)
    assert launch(config) == [2]
    (message,) = said(tmp_path / "run")
    assert "\n  tokenizer.tokenizer.json: " in message and f"the contents of {tokenizer / 'tokenizer.json'}" in message
    moved = Path(shutil.move(tokenizer, tmp_path / "moved"))
    (moved / "tokenizer.json").write_bytes(before)
    assert launch(with_tokenizer(tmp_path / "run", moved)) == [0], "a folder may move"


def test_a_task_model_that_changes_between_runs_is_refused(tmp_path: Path) -> None:
    tsm = Path(write_tsm(tmp_path / "tsm"))
    objective = {"_component_": "medtune.objectives.VITask", "tsm": str(tsm), "align_steps": 1, "chunk_tokens": 0}
    changes = {"dataset": write_task(tmp_path / "data"), "objective": objective, "learning_rates": {}, "optimizer": SGD}
    config = tiny(tmp_path / "run", **changes, max_steps=3, save_every_steps=1)
    assert launch(config, harm=die_at(2)) == [9]
    (file,) = tsm.glob("*.safetensors")
    before = file.read_bytes()
    state = load_file(file)
    name = sorted(state)[0]
    save_file({**state, name: state[name] + 0.01}, file)
    assert launch(config) == [2]
    (message,) = said(tmp_path / "run")
    assert f"\n  companions.objective.tsm/{file.name}: " in message and f"the contents of {tsm}" in message
    file.write_bytes(before)
    assert launch(config) == [0]


def test_a_checkpoint_of_an_older_version_has_no_contents_to_compare(tokenizer: Path, tmp_path: Path) -> None:
    config = with_tokenizer(tmp_path / "run", tokenizer)
    assert launch(config, harm=die_at(3)) == [9]
    for state in (tmp_path / "run").glob("checkpoints/*/state.json"):
        values = json.loads(state.read_text())
        assert values["identity"].pop("tokenizer").keys() == {"tokenizer.json"}
        assert values["identity"].pop("companions") == {}
        state.write_text(json.dumps(values))
        manifest = state.with_name("manifest.json")
        listed = json.loads(manifest.read_text())
        del listed["state.json"]
        manifest.write_text(json.dumps(listed))
    swap_two_words(tokenizer)
    assert launch(config) == [0]


def test_what_is_read_beside_a_named_file_counts_and_the_weights_beside_it_do_not(tmp_path: Path) -> None:
    base = tmp_path / "base"
    (base / "original").mkdir(parents=True)
    names = ("tokenizer.model", "added_tokens.json", "tokenizer_config.json", "original/tokenizer.model")
    for name in (*names, "model.safetensors", "config.json", "vocabulary.model"):
        (base / name).write_text(name)
    config = tiny(tmp_path / "run")
    for path, expected in (
        (base, names),
        (base / "tokenizer.model", names),
        (base / "vocabulary.model", ("vocabulary.model",)),
    ):
        config.transform["path"] = str(path)
        assert content_files(config)["tokenizer"].keys() == set(expected), path
    assert len(set(run_contents(config)["tokenizer"].values())) == 1


def test_companions_are_files_and_folders_of_weights(tmp_path: Path) -> None:
    for name in ("weights/a.safetensors", "weights/config.json", "weights/notes.txt", "data/rows.json", "sets.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    config = tiny(tmp_path / "run")
    config.objective["reference"] = {"weights": str(tmp_path / "weights")}
    config.model["sets"] = [str(tmp_path / "sets.jsonl"), str(tmp_path / "data")]
    assert content_files(config)["companions"].keys() == {
        "model.sets.0/sets.jsonl",
        "objective.reference.weights/a.safetensors",
        "objective.reference.weights/config.json",
    }
