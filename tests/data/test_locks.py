import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from medtune.data.locks import FileLock
from medtune.errors import CheckpointError

TAKEN = CheckpointError("it is taken")


def test_a_lock_is_taken_once_and_given_up(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with FileLock(path, TAKEN):
        with pytest.raises(CheckpointError, match="it is taken"):
            FileLock(path, TAKEN)
        (tmp_path / "link").symlink_to(tmp_path)
        with pytest.raises(CheckpointError):
            FileLock(tmp_path / "link" / ".lock", TAKEN)
    lock = FileLock(path, TAKEN)
    lock.close()
    lock.close()
    lock = FileLock(path, TAKEN)
    del lock  # as an error may leave it
    FileLock(path, TAKEN).close()


def hold(path: Path, ready) -> None:
    lock = FileLock(path, TAKEN)
    ready.set()
    signal.pause()
    lock.close()


def test_another_process_is_refused_until_the_holder_is_killed(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    child = context.Process(target=hold, args=(tmp_path / ".lock", ready), daemon=True)
    child.start()
    assert ready.wait(20)
    with pytest.raises(CheckpointError):
        FileLock(tmp_path / ".lock", TAKEN)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    FileLock(tmp_path / ".lock", TAKEN).close()


def test_a_forked_child_neither_has_the_lock_nor_lifts_it(tmp_path: Path) -> None:
    """A data worker ends, and the run still holds its folder; nor may a child take what its parent holds."""
    path = tmp_path / ".lock"
    lock = FileLock(path, TAKEN)

    def child() -> None:
        try:
            FileLock(path, TAKEN)
        except CheckpointError:
            os._exit(7)
        os._exit(0)

    context = multiprocessing.get_context("fork")
    for _ in range(2):
        process = context.Process(target=child)
        process.start()
        process.join()
        assert process.exitcode == 7
    lock.close()


def hold_with_a_worker(path: Path, ready, over) -> None:
    lock = FileLock(path, TAKEN)
    if os.fork() == 0:
        ready.set()
        over.wait(20)
        os._exit(0)
    signal.pause()
    lock.close()


def test_a_worker_that_outlives_a_killed_run_does_not_keep_the_lock(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready, over = context.Event(), context.Event()
    child = context.Process(target=hold_with_a_worker, args=(tmp_path / ".lock", ready, over), daemon=True)
    child.start()
    assert ready.wait(20)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    try:
        FileLock(tmp_path / ".lock", TAKEN).close()
    finally:
        over.set()
