"""What is computed once before training: made in shares, gone on with after a kill, refused when stale."""

import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medtune.data.locks import FileLock
from medtune.data.shards import Shards
from medtune.errors import ConfigError, DataError, MedtuneError
from medtune.training import precompute
from medtune.training.precompute import Batches, Made, PrecomputeStore
from medtune.training.runtime import Runtime

ALONE = Runtime(torch.device("cpu"))
IDENTITY = {"weights": "a" * 64, "data": {"rows": 7, "seed": 1}}
ITEMS = 7
AT_MOST = np.full(ITEMS, 4 * 2 * 5)  # two branches of at most five tokens in fp32


def log_probs(number: int) -> Made:
    """Two branches of ``number % 3 + 1`` and ``number % 5 + 1`` tokens."""
    chosen = -torch.arange(1.0, number % 3 + 2) / (number + 1)
    return Made({"chosen": chosen, "rejected": -torch.arange(1.0, number % 5 + 2)}, "odd" if number == 5 else None)


class Log:
    """A user of the store: a fake frozen model that notes what it computes, and may die."""

    def __init__(self, folder: Path, identity: dict[str, Any] = IDENTITY, dies_at: int | None = None) -> None:
        self.store = PrecomputeStore(
            folder,
            lambda: identity,
            AT_MOST,
            ALONE,
            key="reference_log_probs",
            what="log-probabilities",
            shard_bytes=80,
        )
        self.shards = Shards(folder, self.store.starts(), key="reference_log_probs")
        self.calls: Batches = []
        self.said: list[str] = []
        self.dies_at = dies_at

    def make(self, batches: Batches) -> Generator[list[Made], None, None]:
        for batch in batches:
            if self.dies_at in batch:
                raise KeyboardInterrupt
            self.calls.append(batch)
            yield [log_probs(number) for number in batch]
        self.calls.append(["the end"])  # type: ignore[list-item]

    def fill(self) -> "Log":
        self.store.fill(self.shards, self.make, batch_size=2, described="7 pairs, 2 x 5 tokens", say=self.said.append)
        return self


def test_made_once_and_read_at_random(tmp_path: Path) -> None:
    made = Log(tmp_path / "store").fill()
    assert made.shards.starts.tolist() == [0, 1, 3, 5, 7], "a shard is closed when it has 80 bytes"
    assert made.calls == [[0], [1, 2], [3, 4], [5, 6], ["the end"]]
    (told,) = made.said
    assert (
        told.endswith("7 pairs, 2 x 5 tokens = 0.3 kB, of which 0.3 kB are to be written")
        and "reference log probs" in told
    )
    read = Log(tmp_path / "store").fill()
    assert read.calls == [] and read.said[0].endswith("all of it there")
    for number in (6, 0, 4, 2):
        for name, value in log_probs(number).arrays.items():
            assert torch.equal(read.shards.item(number)[name], value)
    with pytest.raises(DataError, match="^odd$"):
        read.shards.item(5)


def test_after_a_kill_the_missing_shards_are_made(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        Log(tmp_path, dies_at=4).fill()
    (tmp_path / ".shard_00002.safetensors.1.tmp").write_bytes(b"torn")
    kept = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("shard_*")}
    assert sorted(kept) == ["shard_00000.safetensors", "shard_00001.safetensors"]
    again = Log(tmp_path).fill()
    assert again.calls == [[3, 4], [5, 6], ["the end"]] and not list(tmp_path.glob(".*.tmp"))
    assert "of which 0.2 kB are to be written" in again.said[0]
    assert all((tmp_path / name).stat().st_mtime_ns == changed for name, changed in kept.items())


def test_a_damaged_shard_that_is_deleted_is_made_anew(tmp_path: Path) -> None:
    made = Log(tmp_path).fill()
    path = made.shards.path(1)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ConfigError, match="delete that file and start again"):
        Log(tmp_path).fill().shards.item(1)
    path.unlink()
    assert Log(tmp_path).fill().calls[0] == [1, 2]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"data": {"rows": 7, "seed": 2}}, "  data.seed: 1 there, 2 here"),
        ({"weights": "b" * 64}, "  weights: aaaaaaaaaaaa... there, bbbbbbbbbbbb... here"),
        ({"dtype": "bf16"}, "  dtype: null there, bf16 here"),
    ],
)
def test_stale_items_are_refused_by_the_key_that_differs(changed: dict[str, Any], said: str, tmp_path: Path) -> None:
    Log(tmp_path).fill()
    with pytest.raises(ConfigError) as caught:
        Log(tmp_path, {**IDENTITY, **changed})
    lines = str(caught.value).splitlines()
    assert lines[0] == f"reference_log_probs: the log-probabilities in {tmp_path} are of something else:"
    assert (
        lines[1:-2] == [said]
        and "To make them anew, run: rm -r" in lines[-2]
        and "another reference_log_probs" in lines[-1]
    )


def test_shards_of_nobody_knows_what_are_not_taken(tmp_path: Path) -> None:
    Log(tmp_path).fill()
    (tmp_path / precompute.MANIFEST).unlink()
    with pytest.raises(ConfigError, match="holds shards and no manifest.json"):
        Log(tmp_path)
    (tmp_path / precompute.MANIFEST).write_text(json.dumps({"name": "somebody else's"}))
    with pytest.raises(ConfigError, match="cannot be read as that of kept log-probabilities; set another"):
        Log(tmp_path)


def test_two_runs_that_begin_at_once_do_not_mix(tmp_path: Path) -> None:
    """Both find an empty folder; the second fills it while the first has yet to take the lock."""
    first = Log(tmp_path)
    Log(tmp_path, {**IDENTITY, "data": {"rows": 7, "seed": 2}}).fill()
    first.shards.path(3).unlink()  # else there was nothing to do
    with pytest.raises(ConfigError, match="data.seed: 2 there, 1 here"):
        first.fill()


def test_one_run_at_a_time(tmp_path: Path) -> None:
    with (
        FileLock(tmp_path / ".lock", MedtuneError("")),
        pytest.raises(ConfigError, match="another run is making the log-"),
    ):
        Log(tmp_path).fill()
    Log(tmp_path).fill()
    FileLock(tmp_path / ".lock", MedtuneError("it is free again")).close()


def test_too_small_a_disk_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr(precompute.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ConfigError, match="needs 0.3 kB more and the disk has 0.0 kB free"):
        Log(tmp_path).fill()
    assert not any(tmp_path.iterdir())


def test_processes_share_the_shards_and_keep_step(tmp_path: Path) -> None:
    """Every item is made once by one of them, and all call the model equally often."""
    shards = Shards(tmp_path, np.array([0, 1, 6, 7, 9]))
    made, calls = [], set()
    for rank in range(3):
        store = object.__new__(PrecomputeStore)
        store.runtime = Runtime(torch.device("cpu"), 3, rank)
        shares = store.shares(shards, [0, 1, 2, 3], 2)
        calls.add(tuple(len(share.batches) for share in shares))
        for share in shares:
            numbers = [] if share.shard is None else list(shards.numbers(share.shard))
            flat = [number for batch in share.batches for number in batch]
            assert flat[: len(numbers)] == numbers and set(flat[len(numbers) :]) <= {0}
            made += numbers
    assert sorted(made) == list(range(9)) and calls == {(3, 1)}
