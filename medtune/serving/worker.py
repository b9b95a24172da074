"""The engine in a thread of its own: requests enter and leave its batch between two decoding steps."""

import logging
import threading
import time
import traceback
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from medtune.errors import MedtuneError
from medtune.generation.engine.continuous import Engine, TokenEvent
from medtune.generation.requests import Request
from medtune.serving.errors import ApiError, busy, internal, of_engine, overdue, stopping
from medtune.serving.limits import Limits
from medtune.serving.metrics import Metrics
from medtune.serving.stops import StopTexts

log = logging.getLogger("medtune.serving")


@dataclass(frozen=True)
class Piece:
    """What a client gets in one step.

    Attributes:
        text: New text.
        tokens: Tokens of the answer so far.
        reason: ``stop`` or ``length`` in the last piece of an answer; else None.
        error: The error that ended the request; it is the last piece then.
    """

    text: str = ""
    tokens: int = 0
    reason: str | None = None
    error: ApiError | None = None

    @property
    def last(self) -> bool:
        """Whether nothing follows."""
        return self.reason is not None or self.error is not None


Listener = Callable[[Piece], None]


@dataclass
class _Asked:
    """A request with what is known of its answer."""

    request: Request
    listener: Listener
    stops: StopTexts
    arrived: float = field(default_factory=time.monotonic)
    tokens: int = 0


class Worker:
    """Answers requests from any thread; one thread alone touches the engine and the model.

    At most ``2 * slots`` requests are in the engine, so that the images of the others are not yet decoded.

    Args:
        open_engine: Makes the engine; called again after an error that left its state unknown.
        limits: Length of the queue, and the time of a request.
        metrics: Where it counts.
    """

    def __init__(self, open_engine: Callable[[], Engine], limits: Limits, metrics: Metrics) -> None:
        self.limits, self.metrics = limits, metrics
        self._open_engine = open_engine
        self._engine = open_engine()
        self._waiting: OrderedDict[str, _Asked] = OrderedDict()
        self._inside: dict[str, _Asked] = {}
        self._gone: deque[str] = deque()
        self._changed = threading.Condition()
        self._deadline: float | None = None  # when everything must have ended; None while the server runs
        self._closing = self.failed = False
        self._thread = threading.Thread(target=self._run, name="medtune-engine", daemon=True)
        metrics.watch(lambda: len(self._waiting), lambda: len(self._inside))
        self._thread.start()

    @property
    def accepting(self) -> bool:
        """Whether new requests are taken."""
        return self._deadline is None and not self._closing and not self.failed

    @property
    def idle(self) -> bool:
        """Whether no request waits or is being answered."""
        return not self._waiting and not self._inside

    def submit(self, request: Request, listener: Listener, stops: tuple[str, ...] = ()) -> None:
        """Queue a request.

        Args:
            request: Its id must be new.
            listener: Called with each piece, from the engine's thread; it must not block.
            stops: Texts that end the answer.

        Raises:
            ApiError: If the queue is full (429) or the server is stopping (503).
        """
        with self._changed:
            if not self.accepting:
                raise stopping()
            if len(self._waiting) >= self.limits.queue:
                raise busy(f"{len(self._waiting)} requests are waiting already; try again later", self._pause())
            self._waiting[request.id] = _Asked(request, listener, StopTexts(stops))
            self._changed.notify()

    def cancel(self, name: str) -> None:
        """Forget a request, whose client is gone; its row is free before the next step. No piece follows."""
        with self._changed:
            if self._waiting.pop(name, None) is not None:
                self.metrics.ended("gone")
            else:
                self._gone.append(name)
            self._changed.notify()

    def stop(self) -> None:
        """Take no new requests, and end the others within ``limits.stop_seconds``."""
        with self._changed:
            if self._deadline is None:
                self._deadline = time.monotonic() + self.limits.stop_seconds
            self._changed.notify()

    def close(self) -> None:
        """End every request and the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _pause(self) -> int:
        """Seconds after which a client may try again: about the time in which the queue becomes shorter by a tenth."""
        return max(1, min(30, round(self.metrics.mean_seconds() * self.limits.queue / 10 / self._engine.slots)))

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._something_to_do():
                    self._changed.wait()
                if self._closing or (self._deadline is not None and self.idle):
                    break
            try:
                self._turn()
            except Exception as error:  # whatever it is, the server answers the next requests
                self._recover(error)
                if self.failed:
                    break
        self._end_all(stopping())
        self._engine.close()

    def _something_to_do(self) -> bool:
        ending = self._closing or self._deadline is not None
        return bool(ending or self._gone or self._waiting or self._inside) or not self._engine.idle

    def _turn(self) -> None:
        """One step, and everything that may happen between two steps."""
        self._forget_gone()
        self._end_overdue()
        self._feed()
        if self._engine.idle:
            return
        started = time.monotonic()
        events = self._engine.step()
        rows = sum(event.token is not None or event.reason == "stop" for event in events)
        self.metrics.stepped(rows, time.monotonic() - started)
        for event in events:
            self._pass_on(event)

    def _feed(self) -> None:
        """Give the engine further requests."""
        while len(self._inside) < 2 * self._engine.slots:
            with self._changed:
                if not self._waiting:
                    return
                name, asked = self._waiting.popitem(last=False)
            self._inside[name] = asked
            try:
                self._engine.submit(asked.request)
            except MedtuneError as error:
                self._end(name, of_engine(error), "refused")

    def _pass_on(self, event: TokenEvent) -> None:
        asked = self._inside.get(event.id)
        if asked is None:  # its client is gone
            return
        if event.error is not None:
            self._end(event.id, of_engine(event.error), "refused")
            return
        if event.token is not None:
            asked.tokens += 1
            if asked.tokens == 1:
                self.metrics.first_token(time.monotonic() - asked.arrived)
        text = asked.stops.add(event.text_delta)
        if asked.stops.found and not event.finished:
            self._engine.cancel(event.id)
        ended = event.finished or asked.stops.found
        if ended and not asked.stops.found:
            text += asked.stops.end()
        reason = "stop" if asked.stops.found else event.reason if ended else None
        if ended:
            del self._inside[event.id]
            self.metrics.ended(str(reason), time.monotonic() - asked.arrived, asked.tokens)
        self._tell(event.id, asked, Piece(text, asked.tokens, reason))

    def _tell(self, name: str, asked: _Asked, piece: Piece) -> None:
        try:
            asked.listener(piece)
        except RuntimeError:  # the client's event loop has ended
            if self._inside.pop(name, None) is not None:
                self._engine.cancel(name)

    def _end(self, name: str, error: ApiError, how: str) -> None:
        asked = self._inside.pop(name, None) or self._waiting.pop(name, None)
        if asked is not None:
            self.metrics.ended(how, tokens=asked.tokens)
            self._tell(name, asked, Piece(tokens=asked.tokens, error=error))

    def _forget_gone(self) -> None:
        with self._changed:
            gone = [self._gone.popleft() for _ in range(len(self._gone))]
        for name in gone:
            asked = self._inside.pop(name, None)
            if asked is not None:
                self._engine.cancel(name)
                self.metrics.ended("gone", tokens=asked.tokens)

    def _end_overdue(self) -> None:
        now = time.monotonic()
        if self._deadline is not None and now >= self._deadline:
            self._end_all(stopping())
            return
        with self._changed:
            every = [*self._waiting.items(), *self._inside.items()]
        for name, asked in every:
            if now - asked.arrived > self.limits.seconds:
                inside = name in self._inside
                with self._changed:
                    self._end(name, overdue(self.limits.seconds), "timeout")
                if inside:
                    self._engine.cancel(name)

    def _end_all(self, error: ApiError) -> None:
        for name in list(self._inside):
            self._engine.cancel(name)
        with self._changed:
            for name in [*self._waiting, *self._inside]:
                self._end(name, error, "stopped")

    def _recover(self, error: Exception) -> None:
        """End the requests in the engine, and go on with a new one. The log gets no value, which could be a text."""
        frames = "".join(traceback.format_tb(error.__traceback__))
        log.error("the engine failed with %s; it is made anew\n%s", type(error).__name__, frames)
        with self._changed:
            for name in list(self._inside):
                self._end(name, internal(), "failed")
        self.metrics.engine_failures.inc()
        try:
            self._engine.close()
            self._engine = self._open_engine()
        except Exception as again:
            log.critical("the engine cannot be made anew (%s); the server must be restarted", type(again).__name__)
            self.failed = True
