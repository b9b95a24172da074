"""Processes that die, hang or are told to end: data workers, ranks, nodes."""

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from medtune.training import runtime
from medtune.training.trainer import Trainer
from tests.reliability.faults import all_of, assert_same_run, at, said, steps_saved
from tests.reliability.faults import straight as straight_run
from tests.runs import kill_self, launch, tiny

# Long epochs, so that workers still have batches to make when they die.
LONG: dict[str, Any] = {"dataset": {"size": 96}, "max_steps": 10, "save_every_steps": 3}


@pytest.fixture(scope="module", params=[1, 2])
def straight(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """Fourteen steps without a fault in one process, and in two."""
    world = request.param
    folder = straight_run(tmp_path_factory.mktemp(f"straight{world}"), world, **LONG, batch_size=4 // world)
    return folder, world


@pytest.fixture(scope="module")
def straight_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return straight_run(tmp_path_factory.mktemp("two"), 2, **LONG, batch_size=2)


def test_a_data_worker_that_is_killed(straight: tuple[Path, int], tmp_path: Path) -> None:
    """Every process ends with a sentence within seconds, and the run goes on exactly."""
    reference, world = straight

    def kill_workers(trainer: Trainer) -> None:
        for worker in multiprocessing.active_children():
            os.kill(worker.pid or 0, signal.SIGKILL)

    config = tiny(tmp_path, **LONG, batch_size=4 // world, num_workers=2)
    started = time.perf_counter()
    assert launch(config, world, harm=at(6, kill_workers, rank=world - 1)) == [2] * world
    assert time.perf_counter() - started < 60
    for sentence in said(tmp_path, world):
        assert sentence.startswith("DataError: A data worker process has died (ended by SIGKILL)")
        assert "the same command" in sentence and "num_workers" in sentence
    assert steps_saved(tmp_path) == [4, 6]
    assert launch(config, world) == [0] * world
    assert_same_run(tmp_path, reference)


@pytest.mark.parametrize("rank", [0, 1])
def test_sigterm_of_one_rank(rank: int, straight_two: Path, tmp_path: Path) -> None:
    """All ranks end the step, save once and say so by their status; the run goes on exactly."""

    def terminate(trainer: Trainer) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    config = tiny(tmp_path, **LONG, batch_size=2)
    assert launch(config, 2, harm=at(7, terminate, rank)) == [128 + signal.SIGTERM] * 2
    assert steps_saved(tmp_path) == [6, 8] and not (tmp_path / "weights").exists()
    assert launch(config, 2) == [0, 0]
    assert_same_run(tmp_path, straight_two)


@pytest.mark.parametrize("rank", [0, 1])
def test_sigkill_of_one_rank(rank: int, straight_two: Path, tmp_path: Path) -> None:
    """The other does not wait for ever, and says that its peer has gone."""
    config = tiny(tmp_path, **LONG, batch_size=2)
    status = launch(config, 2, harm=at(7, lambda trainer: kill_self(), rank))
    assert status[rank] == -signal.SIGKILL and status[1 - rank] == 2
    sentence = (tmp_path / f"error_{1 - rank}.txt").read_text()
    assert f"process {1 - rank} of 2: another process of this run has gone" in sentence and "same command" in sentence
    assert launch(config, 2) == [0, 0]
    assert_same_run(tmp_path, straight_two)


def test_a_rank_that_hangs(straight_two: Path, tmp_path: Path) -> None:
    """A peer that no longer answers is given up after a time, which is long in real runs."""

    def patience() -> None:
        runtime.STEP_TIMEOUT = runtime.timedelta(seconds=3)

    def hang(trainer: Trainer) -> None:
        deadline = time.monotonic() + 60
        while not (tmp_path / "error_0.txt").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        os._exit(9)

    config = tiny(tmp_path, **LONG, batch_size=2)
    assert launch(config, 2, harm=all_of(patience, at(7, hang, rank=1))) == [2, 9]
    sentence = (tmp_path / "error_0.txt").read_text()
    assert "did not answer in time" in sentence and "3000ms" in sentence
    assert launch(config, 2) == [0, 0]
    assert_same_run(tmp_path, straight_two)
