"""Locks on files that end with the process that holds them, however it ends."""

import fcntl
import os
from pathlib import Path
from types import TracebackType

from medtune.errors import MedtuneError

_held: set[tuple[int, str]] = set()  # by process: a forked child has this set, and not the locks


class FileLock:
    """An exclusive lock on a file, taken at once or refused.

    It is a POSIX record lock: the system lifts it when the process ends, and a forked child (a data worker) does not
    inherit it, so that a killed run can be started again while its workers are still ending. The system would grant it
    to the same process twice; that is refused here too.

    Args:
        path: made if absent; nothing is written into it. Its folder must exist. Take a file that is never opened
            otherwise: closing any descriptor of it would lift the lock.
        refusal: raised where another run holds the lock.

    Raises:
        MedtuneError: ``refusal``.
        OSError: if the file cannot be made.
    """

    def __init__(self, path: Path, refusal: MedtuneError) -> None:
        self._key = (os.getpid(), str(path.resolve()))
        if self._key in _held:
            raise refusal
        self._file = path.open("a")
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise refusal from error
        _held.add(self._key)

    def close(self) -> None:
        """Give the lock up; a second call does nothing."""
        if not self._file.closed:
            self._file.close()
            _held.discard(self._key)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self.close()

    def __enter__(self) -> "FileLock":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
