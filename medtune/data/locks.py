"""Locks on files that are released when the process that holds them ends, for whatever reason."""

import fcntl
import os
from pathlib import Path
from types import TracebackType

from medtune.errors import MedtuneError

_held: set[tuple[int, str]] = set()  # (process id, path): a forked child inherits this set, but not the locks


class FileLock:
    """An exclusive lock on a file. It is taken at once, or an error is raised.

    It is a POSIX record lock. The system releases it when the process ends. A forked child (a data worker) does not
    inherit it, so that a killed run can be started again while its workers are still ending. The system would grant the
    lock to the same process twice; this class refuses that too.

    Args:
        path: created if absent; nothing is written into it. Its folder must exist. Use a file that nothing else opens:
            closing any descriptor of it would release the lock.
        refusal: the error that is raised if another run holds the lock.

    Raises:
        MedtuneError: ``refusal``.
        OSError: if the file cannot be created.
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
        """Release the lock; a second call does nothing."""
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
