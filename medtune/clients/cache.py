"""Replies on disk: a file that only grows, so that no request is paid for twice and a killed run loses nothing.

Each line is one reply under the key of its request. The file holds the models' texts; of the requests it holds hashes
only. Several threads and several processes may use one file at once. All of them share one lock file beside it
(``NAME.lock``): its first byte is locked while a line is written, and one further byte per request while the request is
in flight, so that two runs do not ask the same thing. The system releases these locks when a process ends.
"""

import fcntl
import hashlib
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from medtune.data.append import cut_torn_tail, explained_writing, write_line
from medtune.errors import DataError, MedtuneError

_WRITING = 0  # byte of the lock file that is locked while a line is written
_POLL = 0.05
_open: set[tuple[int, str]] = set()  # (process id, path): the locks of one process do not exclude one another


class CacheError(MedtuneError):
    """The cache cannot be read, written or locked; no request can be kept, so none should be sent."""


def content_key(value: Any) -> str:
    """Return the SHA-256 of a plain value, independent of the order of its keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class ReplyCache:
    """Replies by the key of their request.

    Args:
        path: The file; it and its folder are created if absent. It must be on a file system with POSIX locks.

    Attributes:
        cut: Bytes of a torn last line that were removed when the file was opened.

    Raises:
        CacheError: The file cannot be written, or holds a line that is no reply.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._places: dict[bytes, tuple[int, int]] = {}
        self._read_to = self._synced_to = self.cut = 0
        self._busy: dict[str, threading.Event] = {}
        self._lock, self._sync_lock = threading.Lock(), threading.Lock()
        self._opened = (os.getpid(), str(self.path.resolve()))
        if self._opened in _open:
            raise CacheError(f"{self.path} is open already in this process; share the object, or close it first.")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            self._locks = os.open(self.path.with_name(self.path.name + ".lock"), flags, 0o666)
            self._file = os.open(self.path, flags | os.O_APPEND, 0o666)
        except OSError as error:
            raise CacheError(f"Cannot write {self.path}: {error.strerror}; choose another cache.") from error
        _open.add(self._opened)
        try:
            with self._lock, self._writing():
                self.cut = self._mend()
                self._refresh()
        except BaseException:
            self.close()
            raise

    def find(self, key: str) -> dict[str, Any] | None:
        """Return the reply to a request, or None."""
        with self._lock:
            return self._find(key)

    def find_or_ask(self, key: str, ask: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], bool]:
        """Return the reply to a request; ask for it only if no thread and no process has done so.

        Args:
            key: Key of the request (:func:`content_key`).
            ask: Returns the reply as plain values, one of them its ``text``. If it raises, nothing is written and the
                next caller may ask.

        Returns:
            The reply, on the disk by now, and whether this call has asked for it.

        Raises:
            CacheError: The reply cannot be written.
        """
        while True:
            with self._lock:
                row = self._find(key)
                if row is not None:
                    return row, False
                other = self._busy.get(key)
                if other is None:
                    self._busy[key] = threading.Event()
                    break
            other.wait()
        try:
            with self._claimed(key):
                with self._lock:
                    self._refresh()  # another process may have asked while this one waited for the claim
                    row = self._find(key)
                if row is not None:
                    return row, False
                row = {"key": key, **ask()}
                self._append(row)
                return row, True
        finally:
            with self._lock:
                self._busy.pop(key).set()

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield all replies, each once."""
        with self._lock:
            places = sorted(self._places.values())
        for start, size in places:
            yield json.loads(os.pread(self._file, size, start))

    def versions(self) -> Counter[str]:
        """Return the number of replies for each version of a prompt."""
        return Counter(str(row.get("version", "")) for row in self.rows())

    def __len__(self) -> int:
        """Return the number of replies that are known."""
        return len(self._places)

    def close(self) -> None:
        """Close the file and release all locks."""
        for descriptor in (self._file, self._locks):
            if descriptor >= 0:
                os.close(descriptor)
        self._file = self._locks = -1
        _open.discard(self._opened)

    def __enter__(self) -> "ReplyCache":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _find(self, key: str) -> dict[str, Any] | None:
        place = self._places.get(bytes.fromhex(key))
        return None if place is None else json.loads(os.pread(self._file, place[1], place[0]))

    def _refresh(self) -> None:
        """Read the lines that were added since the last call; an unfinished last line is left for the next call."""
        size = os.fstat(self._file).st_size
        while self._read_to < size:
            block = os.pread(self._file, min(size - self._read_to, 1 << 24), self._read_to)
            end = block.rfind(b"\n") + 1
            if not end and len(block) < size - self._read_to:  # a line longer than a block
                block = os.pread(self._file, size - self._read_to, self._read_to)
                end = block.rfind(b"\n") + 1
            if not end:
                return
            for line in block[:end].splitlines(keepends=True):
                self._note(line)
                self._read_to += len(line)

    def _note(self, line: bytes) -> None:
        if not line.strip():
            return
        try:
            row = json.loads(line)
            key, _ = bytes.fromhex(row["key"]), row["text"]
        except (ValueError, TypeError, KeyError):
            raise CacheError(
                f"{self.path}: the line at byte {self._read_to} is no reply; remove the line, or choose another cache."
            ) from None
        self._places.setdefault(key, (self._read_to, len(line)))

    def _append(self, row: dict[str, Any]) -> None:
        line = (json.dumps(row, ensure_ascii=False) + "\n").encode()
        try:
            with self._lock, self._writing():
                self._mend()
                write_line(self.path, self._file, line)
                end = os.fstat(self._file).st_size
                self._refresh()
            with self._sync_lock, explained_writing(self.path):  # one flush for all lines that waited for it
                if self._synced_to < end:
                    size = os.fstat(self._file).st_size
                    os.fsync(self._file)
                    self._synced_to = size
        except DataError as error:  # it says nothing of the request, which a caller could skip
            raise CacheError(str(error)) from error

    def _mend(self) -> int:
        """Remove a torn last line. Whoever wrote it is dead, because the caller holds the lock for writing."""
        size = os.fstat(self._file).st_size
        if not size or os.pread(self._file, 1, size - 1) == b"\n":
            return 0
        return cut_torn_tail(self.path)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with self._locked(_WRITING):
            yield

    @contextmanager
    def _claimed(self, key: str) -> Iterator[None]:
        with self._locked(1 + int(key[:15], 16)):
            yield

    @contextmanager
    def _locked(self, byte: int) -> Iterator[None]:
        """Hold one byte of the lock file. Threads of one process share such locks, so they need their own beside it."""
        while True:
            try:
                fcntl.lockf(self._locks, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
                break
            except (BlockingIOError, PermissionError):
                # Waiting in the system could be refused as a deadlock, which it takes several threads for.
                time.sleep(_POLL if byte else 0.001)
            except OSError as error:
                raise CacheError(
                    f"Cannot lock {self.path}: {error.strerror}; put the cache on a file system with locks."
                ) from error
        try:
            yield
        finally:
            fcntl.lockf(self._locks, fcntl.LOCK_UN, 1, byte)
