"""One request on its way: from the event loop of the web server to the engine's thread and back."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from medtune.generation.requests import Request
from medtune.serving.prompts import Served
from medtune.serving.worker import Piece, Worker

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


class ClientGone(Exception):
    """The client has hung up, or takes nothing any more; nobody can be told."""


class Ticket:
    """A submitted request; it must be closed.

    Args:
        served: The model.
        worker: Answers the request.
        request: The request.
        stops: Texts that end its answer.
        receive: Of the connection, whose body has been read: only the end of the connection can follow.

    Raises:
        ApiError: If the worker takes no request now; the ticket is closed then.
    """

    def __init__(
        self, served: Served, worker: Worker, request: Request, stops: tuple[str, ...], receive: Receive
    ) -> None:
        self.served, self.worker, self.request = served, worker, request
        self.tokens, self.ended, self._length = 0, False, 0
        self._pieces: asyncio.Queue[Piece] = asyncio.Queue()
        self._open = True
        self._hangup: asyncio.Task[None] | None = None
        loop = asyncio.get_running_loop()
        try:
            worker.submit(request, lambda piece: _post(loop, self._pieces, piece), stops)
        except BaseException:
            self.ended = True
            self.close()
            raise
        self._hangup = asyncio.create_task(_until_gone(receive))

    @property
    def prompt_tokens(self) -> int:
        """Number of tokens of the prompt."""
        return self.served.prompts.lengths.get(self.request.id, self._length)

    async def next(self) -> Piece:
        """Wait for the next piece; pieces that wait already are joined.

        Raises:
            ApiError: If the request has failed.
            ClientGone: If the client has hung up.
        """
        assert self._hangup is not None
        getting = asyncio.create_task(self._pieces.get())
        try:
            await asyncio.wait({getting, self._hangup}, return_when=asyncio.FIRST_COMPLETED)
            if not getting.done():
                raise ClientGone
            piece = getting.result()
        finally:
            getting.cancel()
        text = piece.text
        while not piece.last and not self._pieces.empty():
            piece = self._pieces.get_nowait()
            text += piece.text
        self.tokens, self.ended = piece.tokens, piece.last
        if piece.error is not None:
            raise piece.error
        return Piece(text, piece.tokens, piece.reason)

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


def _post(loop: asyncio.AbstractEventLoop, pieces: asyncio.Queue[Piece], piece: Piece) -> None:
    loop.call_soon_threadsafe(pieces.put_nowait, piece)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
