"""One request on its way: from the event loop of the web server to the engine's thread and back."""

import asyncio
import threading
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from functools import partial
from typing import Any

from medtune.generation.requests import Request
from medtune.serving.prompts import Served
from medtune.serving.worker import Piece, Worker

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


class ClientGone(Exception):
    """The client has hung up, or takes nothing any more; nobody can be told."""


class Mailbox:
    """Brings pieces from the engine's thread to the event loop, all those of a step at once.

    Args:
        loop: The event loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._lock = threading.Lock()
        self._posted: list[tuple[Ticket, Piece]] = []

    def post(self, ticket: "Ticket", piece: Piece) -> None:
        """Take a piece, in any thread.

        Raises:
            RuntimeError: If the event loop has ended.
        """
        with self._lock:
            self._posted.append((ticket, piece))
            if len(self._posted) > 1:  # the loop has been called already
                return
        self.loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        with self._lock:
            posted, self._posted = self._posted, []
        for ticket, piece in posted:
            ticket.take(piece)


class Ticket:
    """A submitted request; it must be closed.

    Args:
        served: The model.
        worker: Answers the request.
        mailbox: Of the running event loop.
        request: The request.
        stops: Texts that end its answer.
        receive: Of the connection, whose body has been read: only the end of the connection can follow.

    Raises:
        ApiError: If the worker takes no request now; the ticket is closed then.
    """

    def __init__(
        self,
        served: Served,
        worker: Worker,
        mailbox: Mailbox,
        request: Request,
        stops: tuple[str, ...],
        receive: Receive,
    ) -> None:
        self.served, self.worker, self.request = served, worker, request
        self.tokens, self.ended, self._length = 0, False, 0
        self._pieces: deque[Piece] = deque()
        self._changed = asyncio.Event()
        self._open = True
        self._hangup: asyncio.Task[None] | None = None
        try:
            worker.submit(request, partial(mailbox.post, self), stops)
        except BaseException:
            self.ended = True
            self.close()
            raise
        self._hangup = asyncio.create_task(_until_gone(receive))
        self._hangup.add_done_callback(lambda _: self._changed.set())

    @property
    def prompt_tokens(self) -> int:
        """Number of tokens of the prompt."""
        length = self.served.prompts.length(self.request.id)
        return self._length if length is None else length

    def take(self, piece: Piece) -> None:
        """Take a piece, in the event loop."""
        self._pieces.append(piece)
        self._changed.set()

    async def next(self) -> Piece:
        """Wait for the next piece; pieces that wait already are joined.

        Raises:
            ApiError: If the request has failed.
            ClientGone: If the client has hung up.
        """
        assert self._hangup is not None
        while not self._pieces:
            if self._hangup.done():
                raise ClientGone
            self._changed.clear()
            await self._changed.wait()
        pieces, self._pieces = self._pieces, deque()
        last = pieces[-1]
        self.tokens, self.ended = last.tokens, last.last
        if last.error is not None:
            raise last.error
        return Piece("".join(piece.text for piece in pieces), last.tokens, last.reason)

    def close(self) -> None:
        """Forget the request; one that is still being answered is cancelled."""
        if not self._open:
            return
        self._open = False
        if self._hangup is not None:
            self._hangup.cancel()
        if not self.ended:
            self.worker.cancel(self.request.id)
        self._length = self.served.release(self.request)
        self.worker.metrics.prompt_tokens.inc(self._length)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
