"""Checkpoints are whole or passed over; a full disk harms nothing."""

import errno
import json
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


def test_a_torn_checkpoint_of_a_later_step_does_not_take_the_place_of_a_new_one(tmp_path: Path) -> None:
    """The run has gone on from the beginning, because its newest checkpoint was damaged."""
    (save_checkpoint(tmp_path, state(40), keep=1) / "state.json").unlink()
    for step in (10, 20):
        path = save_checkpoint(tmp_path, state(step), keep=1)
        assert newest_checkpoint(tmp_path, lambda message: None) == path
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step_00000020", "step_00000040"]
    save_checkpoint(tmp_path, state(40), keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000040"]
    assert newest_checkpoint(tmp_path, lambda message: None) == tmp_path / "step_00000040"


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


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file and the folder are flushed before the rename, and the new name after it; only then older ones go."""
    save_checkpoint(tmp_path, state(1), keep=1)
    seen: list[str] = []
    fsync, replace, rmtree = os.fsync, os.replace, checkpoints.shutil.rmtree

    def flushed(descriptor: int) -> None:
        seen.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def renamed(source: Path, target: Path) -> None:
        seen.append(f"-> {Path(target).name}")
        replace(source, target)

    def removed(path: Path, **kwargs: bool) -> None:
        if Path(path).exists():
            seen.append(f"rm {Path(path).name}")
        rmtree(path, **kwargs)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", renamed)
    monkeypatch.setattr(checkpoints.shutil, "rmtree", removed)
    save_checkpoint(tmp_path, state(2), keep=1)
    files = ["manifest.json", "model.safetensors", "objective.safetensors", "optimizer.safetensors", "state.json"]
    assert sorted(seen[:5]) == files
    assert seen[5:] == [".step_00000002.writing", "-> step_00000002", tmp_path.name, "rm step_00000001"]


def test_the_manifest_is_written_last_and_lists_every_other_file(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, state(3), keep=1)
    listed = json.loads((path / "manifest.json").read_text())
    assert {file.name for file in path.iterdir()} == {*listed, "manifest.json"} and len(listed) == 4


def test_newest_by_number_and_written_again(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        save_checkpoint(tmp_path, state(step), keep=5)
    assert newest_checkpoint(tmp_path, lambda message: None) == tmp_path / "step_00000100"
    save_checkpoint(tmp_path, TrainingState(values={"step": 100, "new": 1}), keep=5)
    assert load_checkpoint(tmp_path / "step_00000100").values == {"step": 100, "new": 1}


def test_a_checkpoint_that_cannot_be_read_says_what_to_do(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, state(1), keep=1)
    (path / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"cannot read checkpoint .*step_00000001: .*; delete the folder"):
        load_checkpoint(path)
    (path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="delete the folder to use an earlier one"):
        load_checkpoint(path)


def test_only_what_both_know_is_compared(tmp_path: Path) -> None:
    check_identity(tmp_path, {"seed": 1, "gone": 2}, {"seed": 1, "new": 3})
    with pytest.raises(CheckpointError) as caught:
        check_identity(tmp_path, {"data": "a", "seed": 1}, {"data": "b", "seed": 2}, {"data": ["x.csv", "y.csv"]})
    lines = str(caught.value).splitlines()
    assert lines[1] == "  data: a there, b here (the contents of x.csv, y.csv, or how they are read, have changed)"
    assert lines[2] == "  seed: 1 there, 2 here" and "set another output_dir" in lines[-1]
