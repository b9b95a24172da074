"""When a request may start, and how long to wait before it is sent again.

Temporary failures are tried again after a pause that grows. A server that asks for a pause (``Retry-After``) gets it,
from all threads of a client, so that one answer 429 slows down every request and not only the one that got it.
"""

import random
import threading
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import TypeVar

ReplyT = TypeVar("ReplyT")
FIRST_PAUSE, LONGEST_GROWN = 0.5, 30.0
LONGEST_ASKED = 120.0
"""Seconds. A server that asks for a longer pause is not asked again."""


class TemporaryError(Exception):
    """A failure that may pass; ``cause`` is the error to raise if it does not.

    Attributes:
        cause: Error for the user.
        asked: Seconds that the server asks for; None if it does not say.
        for_all: Whether a pause that the server asks for concerns every request (429 and 503).
    """

    def __init__(self, cause: Exception, asked: float | None = None, for_all: bool = False) -> None:
        super().__init__(str(cause))
        self.cause, self.asked, self.for_all = cause, asked, for_all


class Interrupted(Exception):
    """The pacer was stopped while a request waited."""


class Pacer:
    """Decides when the next request of a client may start; safe to call from several threads.

    Args:
        per_minute: Maximum number of requests that start per minute, evenly spaced; None for no limit.
    """

    def __init__(self, per_minute: float | None = None) -> None:
        self._spacing = 60.0 / per_minute if per_minute else 0.0
        self._next = 0.0
        self._lock, self._stopped = threading.Lock(), threading.Event()

    def wait(self) -> None:
        """Wait for this request's turn.

        Raises:
            Interrupted: :meth:`stop` was called.
        """
        while True:
            with self._lock:
                now = time.monotonic()
                if now >= self._next:
                    self._next = now + self._spacing
                    return
                pause = self._next - now
            self.sleep(pause * random.uniform(1.0, 1.1))  # so that held requests do not start all at once

    def hold(self, seconds: float) -> None:
        """Let no request start for a number of seconds."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)

    def sleep(self, seconds: float) -> None:
        """Wait a number of seconds.

        Raises:
            Interrupted: :meth:`stop` was called.
        """
        if self._stopped.wait(seconds):
            raise Interrupted

    def stop(self) -> None:
        """End all pauses; requests that wait raise :class:`Interrupted`."""
        self._stopped.set()


def attempted(send: Callable[[], ReplyT], retries: int, pacer: Pacer) -> ReplyT:
    """Call ``send`` until it succeeds, at most ``retries`` further times.

    Args:
        send: Sends the request; raises :class:`TemporaryError` for a failure that may pass.
        retries: Number of further attempts.
        pacer: Decides when an attempt may start.

    Raises:
        Exception: The cause of the last temporary failure, or whatever else ``send`` raises.
    """
    attempt = 0
    while True:
        pacer.wait()
        try:
            return send()
        except TemporaryError as error:
            if attempt == retries or (error.asked or 0.0) > LONGEST_ASKED:
                raise error.cause from None
            pause = grown_pause(attempt) if error.asked is None else error.asked
            for_all = error.for_all and error.asked is not None
        if for_all:
            pacer.hold(pause)
        pacer.sleep(pause)
        attempt += 1


def grown_pause(attempt: int) -> float:
    """Return the pause after an attempt (from 0) in seconds: doubled each time, with up to a quarter less by chance."""
    return float(min(FIRST_PAUSE * 2**attempt, LONGEST_GROWN) * (1 - 0.25 * random.random()))


def asked_pause(headers: Mapping[str, str]) -> float | None:
    """Return the pause in seconds that a reply asks for; None if it asks for none, or for one that cannot be read.

    Args:
        headers: Headers with names in lower case: ``retry-after-ms``, or ``retry-after`` with seconds or a date.
    """
    try:
        return max(0.0, float(headers["retry-after-ms"]) / 1000)
    except (KeyError, ValueError):
        pass
    text = headers.get("retry-after", "")
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError):
        return None
