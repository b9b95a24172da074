"""Checkpoints are whole or passed over; a full disk harms nothing."""

import errno
import os
from pathlib import Path

import pytest
import torch

from medtune.errors import CheckpointError
from medtune.training import checkpoints
from medtune.training.checkpoints import (
    TrainingState,
    check_identity,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)


def state(step: int) -> TrainingState:
    return TrainingState(
        {"a.weight": torch.full((3, 2), float(step))},
        {"a.weight|exp_avg": torch.ones(3, 2), "a.weight|step": torch.tensor(float(step))},
        {"proxy.weight": torch.zeros(2)},
        {"step": step, "identity": {"model": "m"}},
    )


def test_round_trip(tmp_path: Path) -> None:
    loaded = load_checkpoint(save_checkpoint(tmp_path, state(7), keep=2))
    assert torch.equal(loaded.model["a.weight"], state(7).model["a.weight"])
    assert loaded.optimizer["a.weight|step"].shape == ()
    assert loaded.values == state(7).values


def test_files_may_be_read_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        path = save_checkpoint(tmp_path, state(7), keep=2)
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in path.iterdir()} == {0o640}


def test_oldest_checkpoints_go(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, state(step), keep=2)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step_00000002", "step_00000003"]


@pytest.mark.parametrize("harm", ["truncate", "delete", "flip", "manifest"])
def test_a_torn_checkpoint_is_named_and_passed_over(tmp_path: Path, harm: str) -> None:
    save_checkpoint(tmp_path, state(1), keep=5)
    newest = save_checkpoint(tmp_path, state(2), keep=5)
    file = newest / ("manifest.json" if harm == "manifest" else "optimizer.safetensors")
    if harm == "delete":
        file.unlink()
    elif harm == "flip":
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    else:
        file.write_bytes(file.read_bytes()[:-9])
    said: list[str] = []
    assert newest_checkpoint(tmp_path, said.append) == tmp_path / "step_00000001"
    assert "step_00000002" in said[0] and file.name in said[0]


def test_a_kill_while_writing_leaves_no_checkpoint_behind(tmp_path: Path) -> None:
    (tmp_path / ".step_00000009.writing").mkdir()
    (tmp_path / ".step_00000009.writing" / "model.safetensors").write_bytes(b"half")
    assert newest_checkpoint(tmp_path, lambda message: None) is None
    assert save_checkpoint(tmp_path, state(9), keep=1).name == "step_00000009"


def test_a_full_disk_is_a_clear_error_and_earlier_checkpoints_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = save_checkpoint(tmp_path, state(1), keep=5)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(CheckpointError, match="No space left.*free space"):
        save_checkpoint(tmp_path, state(2), keep=5)
    assert newest_checkpoint(tmp_path, lambda message: None) == first
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]


def test_another_model_is_refused_by_the_keys_that_differ(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="seed: 1 there, 2 here"):
        check_identity(tmp_path, {"seed": 1, "model": "m"}, {"seed": 2, "model": "m"})
