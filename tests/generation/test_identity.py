"""A prediction file belongs to one model and one set of questions."""

import json
from pathlib import Path

import pytest

from medtune.errors import ConfigError, ModelError
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


def test_credentials_are_masked_and_old_records_lose_them(output: Path):
    predictions, record = output / "predictions.jsonl", output / "predictions.meta.json"
    secret = {"config": {"seed": 0}, "weights": {"extra_headers": {"X-Key": "abc-123"}, "api_token": "abc-123"}}
    claim(predictions, secret)
    assert "abc-123" not in record.read_text()
    predictions.write_text("{}\n")
    record.write_text(json.dumps(secret))  # as earlier versions wrote it
    claim(predictions, {**secret, "weights": {"extra_headers": {"X-Key": "new"}, "api_token": "new"}})
    assert "abc-123" not in record.read_text() and json.loads(record.read_text())["config"] == {"seed": 0}
    record.write_text(json.dumps(secret))
    with pytest.raises(ConfigError, match="config.seed") as caught:
        claim(predictions, {**secret, "config": {"seed": 1}})
    assert "abc-123" not in str(caught.value)
    with pytest.raises(ConfigError, match="weights.model"):
        claim(predictions, {**secret, "weights": {**secret["weights"], "model": "other"}})


def test_a_record_is_written_once(output: Path):
    predictions, record = output / "predictions.jsonl", output / "predictions.meta.json"
    claim(predictions, IDENTITY)
    predictions.write_text("{}\n")
    before = record.stat()
    claim(predictions, IDENTITY)
    assert (record.stat().st_ino, record.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_weights_are_told_apart_by_content(tmp_path: Path):
    (tmp_path / "a.safetensors").write_bytes(b"one")
    first = weights_identity(tmp_path)
    assert first == {
        "a.safetensors": {"sha256": "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed", "bytes": 3}
    }
    (tmp_path / "a.safetensors").write_bytes(b"two")
    assert weights_identity(tmp_path / "a.safetensors") != first


def test_missing_weights_are_named(tmp_path: Path):
    with pytest.raises(ModelError, match="holds no safetensors"):
        weights_identity(tmp_path)
    with pytest.raises(ConfigError, match="neither a .safetensors file nor a folder"):
        weights_identity(tmp_path, beside=["*.json"])
