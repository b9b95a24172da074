"""Rows chosen by their meta: which are read, their fingerprint, and choices that leave nothing."""

import json
from pathlib import Path

import pytest

from medtune.config import load_config
from medtune.datasets import jsonl_dataset
from medtune.errors import ConfigError, DataError
from medtune.training.config import TrainConfig


def rows(folder: Path, *metas: object) -> Path:
    path = folder / "rows.jsonl"
    message = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    path.write_text(
        "".join(json.dumps({"id": n, "messages": message, "meta": meta}) + "\n" for n, meta in enumerate(metas))
    )
    return path


def test_rows_of_one_value_of_several_and_of_two_keys(tmp_path: Path) -> None:
    path = rows(tmp_path, {"task": "a", "set": "x"}, {"task": "b", "set": "x"}, {"task": "a", "set": "y"}, {})

    def ids(**where: object) -> list[str]:
        return [sample.id for sample in jsonl_dataset(str(path), where=where)]  # type: ignore[arg-type,attr-defined]

    assert ids(task="a") == ["0", "2"]
    assert ids(task=["a", "b"]) == ["0", "1", "2"]
    assert ids(task="a", set="y") == ["2"]


def test_a_row_that_cannot_be_read_is_left_to_the_data_check(tmp_path: Path) -> None:
    path = rows(tmp_path, {"task": "a"}, {"task": "b"}, "no object")
    chosen = jsonl_dataset(str(path), where={"task": "a"})
    assert len(chosen) == 2
    with pytest.raises(DataError, match="line 3"):
        chosen[1]


def test_another_choice_is_another_data_set(tmp_path: Path) -> None:
    path = str(rows(tmp_path, {"task": "a"}, {"task": "b"}))
    wheres = [None, {"task": "a"}, {"task": "b"}, {"task": ["a", "b"]}]
    assert len({jsonl_dataset(path, where=where).fingerprint() for where in wheres}) == 4
    again = {jsonl_dataset(path, where={"task": "a"}).fingerprint() for _ in range(2)}
    assert len(again) == 1


def test_a_value_that_does_not_occur_is_said_with_those_that_do(tmp_path: Path) -> None:
    path = str(rows(tmp_path, {"task": "a", "set": "x"}, {"task": "b", "set": "y"}))
    with pytest.raises(DataError, match="no row has task c; task is a, b"):
        jsonl_dataset(path, where={"task": "c"})
    with pytest.raises(DataError, match="no row has kind in its meta"):
        jsonl_dataset(path, where={"kind": "c"})
    with pytest.raises(DataError, match="not together"):
        jsonl_dataset(path, where={"task": "a", "set": "y"})
    for empty in ({}, {"task": []}):
        with pytest.raises(ConfigError, match="task: counting"):
            jsonl_dataset(path, where=empty)  # type: ignore[arg-type]


def test_the_choice_can_be_an_override_of_a_config() -> None:
    config = load_config("sft/mini_me_vlip", TrainConfig, ["dataset.where.task=counting"])
    assert config.dataset.arguments["where"] == {"task": "counting"}
