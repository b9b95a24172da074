"""Replies in the form of OpenAI's chat completions API, whole and as a stream of events."""

import json
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from medtune.serving.errors import ApiError
from medtune.serving.ticket import ClientGone, Ticket
from medtune.serving.worker import Piece

_MARK = "\x00the text of a piece\x00"
DONE = b"data: [DONE]\n\n"
Finish = Callable[[int, str], None]


class Form:
    """What all replies to one request have in common.

    Args:
        ticket: The request.
        model: The name that the client gave.
        route: What is told of the request's route; empty without routes.
    """

    def __init__(self, ticket: Ticket, model: str, route: Mapping[str, Any]) -> None:
        self.ticket, self.model, self.route = ticket, model, dict(route)
        self.created = int(time.time())
        self._around: tuple[bytes, bytes] | None = None

    def whole(self, text: str, reason: str) -> dict[str, Any]:
        """Return the reply that holds the whole answer."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": reason, "logprobs": None}
        return self._reply("chat.completion", [choice], usage=self.usage())

    def chunk(self, delta: Mapping[str, Any], reason: str | None = None) -> bytes:
        """Return one event of a stream."""
        choice = {"index": 0, "delta": dict(delta), "finish_reason": reason, "logprobs": None}
        return event(self._reply("chat.completion.chunk", [choice]))

    def text_chunk(self, text: str) -> bytes:
        """Return the event of a piece of text; all that does not change is written once."""
        if self._around is None:
            before, _, after = self.chunk({"content": _MARK}).partition(json.dumps(_MARK).encode())
            self._around = before, after
        return self._around[0] + json.dumps(text, ensure_ascii=False).encode() + self._around[1]

    def usage_chunk(self) -> bytes:
        """Return the event that holds the usage, after the last piece of the answer."""
        return event(self._reply("chat.completion.chunk", [], usage=self.usage()))

    def usage(self) -> dict[str, int]:
        """Return the numbers of tokens."""
        prompt, answer = self.ticket.prompt_tokens, self.ticket.tokens
        return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}

    def _reply(self, kind: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        told = {"medtune": self.route} if self.route else {}
        head = {"id": self.ticket.request.id, "object": kind, "created": self.created, "model": self.model}
        return {**head, "choices": choices, **more, **told}


class EventStream(Response):
    """A streamed answer. It ends with the client: a client that hangs up frees its row.

    Args:
        form: The replies.
        first: The first piece, which was waited for so that an early error has its own status.
        include_usage: Whether the usage is sent at the end.
        finish: Called once with the status and how it ended.
    """

    media_type = "text/event-stream"

    def __init__(self, form: Form, first: Piece, include_usage: bool, finish: Finish) -> None:
        super().__init__(headers={"Cache-Control": "no-store"})
        self.form, self.first, self.include_usage, self.finish = form, first, include_usage, finish
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        how = "gone"
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            how = await self._events(send)
        except ClientGone:
            pass
        finally:
            self.form.ticket.close()
            self.finish(200, how)

    async def _events(self, send: Callable[[MutableMapping[str, Any]], Awaitable[None]]) -> str:
        async def write(body: bytes, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": body, "more_body": more})

        await write(self.form.chunk({"role": "assistant", "content": ""}))
        piece = self.first
        while True:
            if piece.text:
                await write(self.form.text_chunk(piece.text))
            if piece.reason is not None:
                break
            try:
                piece = await self.form.ticket.next()
            except ApiError as error:  # the status has been sent already
                await write(event(error.body()) + DONE, more=False)
                return str(error.code)
        usage = self.form.usage_chunk() if self.include_usage else b""
        await write(self.form.chunk({}, piece.reason) + usage + DONE, more=False)
        return piece.reason


def event(value: Mapping[str, Any]) -> bytes:
    """Return a value as a server-sent event."""
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
