"""The engine as a source of answers to a stream of requests, with the interface of the generator."""

from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from medtune.errors import DataError
from medtune.generation.engine.continuous import Engine, TokenEvent
from medtune.generation.requests import Generation, Request


@dataclass
class _Unfinished:
    """A request in the engine, with what is written of its answer."""

    request: Request
    text: str = ""
    tokens: int = 0

    def take(self, event: TokenEvent) -> None:
        self.text += event.text_delta
        self.tokens += event.token is not None


class EngineAnswers:
    """Answers requests with :class:`~medtune.generation.engine.continuous.Engine`.

    A row that ends is free for the next request at once. The generator's batch waits for its longest answer instead.
    This form is faster if the lengths of sampled answers are not known in advance and vary.

    Args:
        engine: The engine; nothing else may submit requests to it.
        on_error: Called with a request that cannot be used, which is then skipped; None raises the error.
    """

    def __init__(self, engine: Engine, on_error: Callable[[Request, DataError], None] | None = None) -> None:
        self.engine, self.on_error = engine, on_error

    @property
    def images_encoded(self) -> int:
        """Number of images that were encoded so far."""
        return self.engine.features.encoded

    @property
    def keeps_images(self) -> bool:
        """Whether it is inside :meth:`keeping_images`."""
        return self.engine.keeps_images

    @contextmanager
    def keeping_images(self) -> Iterator[None]:
        """Keep every image that is opened and encoded until the end of the context, for later streams of requests."""
        self.engine.keeps_images = True
        try:
            yield
        finally:
            self.engine.keeps_images = False
            self.engine.forget_images()

    def batches(self, requests: Iterable[Request], done: Container[str] = frozenset()) -> Iterator[list[Generation]]:
        """Yield answers as they end. At most twice as many requests as the engine has slots are read in advance.

        Raises:
            DataError: If a request cannot be used and there is no ``on_error``.
        """
        waiting = (request for request in requests if request.id not in done)
        asked: dict[str, _Unfinished] = {}
        try:
            while True:
                while len(asked) < 2 * self.engine.slots and (request := next(waiting, None)) is not None:
                    self.engine.submit(request)
                    asked[request.id] = _Unfinished(request)
                if not asked:
                    return
                if ended := list(self._step(asked)):
                    yield ended
        finally:
            for name in asked:  # only if the caller or a request has ended the stream
                self.engine.cancel(name)
            if asked:
                self.engine.step()

    def _step(self, asked: dict[str, _Unfinished]) -> Iterator[Generation]:
        for event in self.engine.step():
            asked[event.id].take(event)
            if not event.finished:
                continue
            one = asked.pop(event.id)
            if event.error is None:
                yield Generation(event.id, one.text, one.tokens, event.reason == "stop", notes=one.request.notes)
            elif self.on_error is None or not isinstance(event.error, DataError):
                raise event.error
            else:
                self.on_error(one.request, event.error)
