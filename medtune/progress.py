"""Progress bars, with a lock for the threads of one process.

tqdm's own lock is shared by a process and its forks. A fork that is killed while it draws its bar (no memory left, a
sweep that is stopped) never gives it back, and every other process would wait for it for ever.
"""

import os
import threading

from tqdm import tqdm


def _own_lock() -> None:
    tqdm.set_lock(threading.RLock())


_own_lock()
os.register_at_fork(after_in_child=_own_lock)  # a thread may have held the lock at the moment of the fork

__all__ = ["tqdm"]
