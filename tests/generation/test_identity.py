"""A prediction file belongs to one model and one set of questions."""

import json
from pathlib import Path

import pytest

from medtune.errors import ConfigError
from medtune.generation.identity import claim, weights_identity

IDENTITY = {"config": {"seed": 0, "protocols": ["open"]}, "data": "abc"}


def test_the_same_identity_may_continue(output: Path):
    predictions = output / "predictions.jsonl"
    claim(predictions, IDENTITY)
    predictions.write_text("{}\n")
    claim(predictions, {"data": "abc", "config": {"protocols": ("open",), "seed": 0}})
    assert json.loads((output / "predictions.meta.json").read_text()) == IDENTITY


def test_another_identity_is_refused_and_named(output: Path):
    predictions = output / "predictions.jsonl"
    claim(predictions, IDENTITY)
    predictions.write_text("{}\n")
    with pytest.raises(ConfigError, match="config.seed: 0 before, 1 now"):
        claim(predictions, {**IDENTITY, "config": {**IDENTITY["config"], "seed": 1}})


def test_a_run_that_answered_nothing_does_not_bind(output: Path):
    predictions = output / "predictions.jsonl"
    claim(predictions, IDENTITY)
    predictions.touch()
    claim(predictions, {**IDENTITY, "data": "other"})
    assert json.loads((output / "predictions.meta.json").read_text())["data"] == "other"


def test_answers_of_unknown_origin_are_refused(output: Path):
    predictions = output / "predictions.jsonl"
    predictions.write_text("{}\n")
    with pytest.raises(ConfigError, match="its model is unknown"):
        claim(predictions, IDENTITY)


def test_a_broken_record_is_refused(output: Path):
    predictions = output / "predictions.jsonl"
    predictions.write_text("{}\n")
    (output / "predictions.meta.json").write_text("{")
    with pytest.raises(ConfigError, match="not valid JSON"):
        claim(predictions, IDENTITY)


def test_weights_are_told_apart_by_content(tmp_path: Path):
    (tmp_path / "a.safetensors").write_bytes(b"one")
    first = weights_identity(tmp_path)
    assert first == {
        "a.safetensors": {"sha256": "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed", "bytes": 3}
    }
    (tmp_path / "a.safetensors").write_bytes(b"two")
    assert weights_identity(tmp_path / "a.safetensors") != first


def test_missing_weights_are_named(tmp_path: Path):
    with pytest.raises(ConfigError, match="neither a .safetensors file nor a folder"):
        weights_identity(tmp_path)
