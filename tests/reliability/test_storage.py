"""Disks that fill up, checkpoints that are torn or of another number of processes, folders that are taken."""

from pathlib import Path
from typing import Any

import pytest

from medtune.training.trainer import Trainer
from tests.reliability.faults import all_of, assert_same_run, at, full_disk_at_checkpoint, said, steps_saved
from tests.reliability.faults import straight as straight_run
from tests.runs import SGD, die_at, largest_difference, launch, losses, tiny, weights

SAVES: dict[str, Any] = {"save_every_steps": 3}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve steps without a fault; checkpoints at 3, 4 (end of the warm-up), 6, 9 and 12."""
    return straight_run(tmp_path_factory.mktemp("straight"), **SAVES)


@pytest.mark.parametrize("world", [1, 2])
def test_full_disk_during_a_checkpoint(world: int, straight: Path, tmp_path: Path) -> None:
    """Every process ends with one sentence, earlier checkpoints stay, and the run goes on once there is room."""
    config = tiny(tmp_path, **SAVES, batch_size=4 // world)
    assert launch(config, world, harm=full_disk_at_checkpoint(2)) == [2] * world
    for sentence in said(tmp_path, world):
        assert "step_00000006: " in sentence and "File too large" in sentence and "free space" in sentence
    assert steps_saved(tmp_path) == [3, 4]
    assert launch(config, world) == [0] * world
    if world == 1:
        assert_same_run(tmp_path, straight)
    else:
        assert losses(tmp_path) == pytest.approx(losses(straight), abs=1e-5)


def test_full_disk_while_numbers_are_logged(straight: Path, tmp_path: Path) -> None:
    def fill(trainer: Trainer) -> None:
        trainer.telemetry.file = Path("/dev/full").open("a")

    config = tiny(tmp_path, **SAVES)
    assert launch(config, harm=at(7, fill)) == [2]
    assert "step 8: cannot write into /dev/full" in said(tmp_path)[0] and "No space left" in said(tmp_path)[0]
    assert launch(config) == [0]
    assert_same_run(tmp_path, straight)


def test_torn_newest_checkpoint(straight: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It is skipped by name, and the one before is taken."""
    config = tiny(tmp_path, **SAVES)
    assert launch(config, harm=die_at(8)) == [9]
    assert steps_saved(tmp_path) == [4, 6]
    file = tmp_path / "checkpoints" / "step_00000006" / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-50])
    capfd.readouterr()
    assert launch(config) == [0]
    told = capfd.readouterr().out
    assert "step_00000006 is torn (optimizer.safetensors is missing or has another size) and is passed over" in told
    assert "continuing step_00000004 of 12 steps" in told
    assert_same_run(tmp_path, straight)


@pytest.mark.parametrize(("first", "second"), [(2, 1), (1, 2)])
def test_checkpoint_of_another_world_size(first: int, second: int, tmp_path: Path) -> None:
    """Losses and weights are those of a run in one process, to 1e-6 in fp32."""
    # SGD, because Adam turns rounding noise into steps; all logits at once for the same reason.
    options: dict[str, Any] = {"optimizer": SGD, "objective": {"chunk_tokens": 0}, **SAVES}
    plain = straight_run(tmp_path / "plain", **options)
    run = tmp_path / "run"
    assert launch(tiny(run, **options, batch_size=4 // first), first, harm=die_at(8)) == [9] * first
    assert launch(tiny(run, **options, batch_size=4 // second), second) == [0] * second
    assert losses(run) == pytest.approx(losses(plain), abs=1e-6)
    assert largest_difference(weights(plain), weights(run)) < 1e-6


def test_another_global_batch_on_another_world_size_is_refused(tmp_path: Path) -> None:
    assert launch(tiny(tmp_path, **SAVES), harm=die_at(8)) == [9]
    assert launch(tiny(tmp_path, **SAVES), world=2) == [2, 2]
    for sentence in said(tmp_path, 2):
        assert "global_batch: 4 there, 8 here" in sentence


def test_two_runs_in_one_output_folder(straight: Path, tmp_path: Path) -> None:
    """The second is refused at once, and the first does not notice."""
    config = tiny(tmp_path, **SAVES)

    def second(trainer: Trainer) -> None:
        (tmp_path / "second").write_text(str(launch(config)))

    assert launch(config, harm=at(5, second)) == [0]
    assert (tmp_path / "second").read_text() == "[2]"
    assert said(tmp_path) == [f"CheckpointError: {tmp_path} is in use by another run; set another output_dir"]
    assert_same_run(tmp_path, straight)


def test_faults_one_after_another(straight: Path, tmp_path: Path) -> None:
    """A full disk, a crash, a torn checkpoint, another crash: the run ends where it would have ended."""
    config = tiny(tmp_path, **SAVES)
    assert launch(config, harm=full_disk_at_checkpoint(1)) == [2]
    assert launch(config, harm=die_at(7)) == [9]
    newest = tmp_path / "checkpoints" / f"step_{steps_saved(tmp_path)[-1]:08d}"
    (newest / "manifest.json").unlink()
    assert launch(config, harm=all_of(die_at(11))) == [9]
    assert launch(config) == [0]
    assert_same_run(tmp_path, straight)
