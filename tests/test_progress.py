"""Bars of one process do not wait for another one."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable

from medtune.progress import tqdm


def _draw() -> None:
    for _ in tqdm(range(3), leave=False):
        pass


def _hold(ready) -> None:
    tqdm.get_lock().acquire()
    ready.set()
    signal.pause()


def _in_time(work: Callable[[], None]) -> bool:
    done = threading.Event()

    def run() -> None:
        work()
        done.set()

    threading.Thread(target=run, daemon=True).start()
    return done.wait(20)


def test_a_fork_killed_while_it_draws_stops_no_other_process() -> None:
    _draw()  # the lock is made with the first bar
    forks = multiprocessing.get_context("fork")
    ready = forks.Event()
    child = forks.Process(target=_hold, args=(ready,))
    child.start()
    assert ready.wait(20)
    os.kill(child.pid, signal.SIGKILL)
    child.join(20)
    assert _in_time(_draw)


def test_a_fork_draws_although_a_thread_drew_at_the_moment_of_the_fork() -> None:
    _draw()
    held, forked = threading.Event(), threading.Event()

    def hold() -> None:
        with tqdm.get_lock():
            held.set()
            forked.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(20)
    child = multiprocessing.get_context("fork").Process(target=_draw)
    child.start()
    child.join(20)
    forked.set()
    thread.join()
    ended = child.exitcode
    child.kill()
    assert ended == 0
