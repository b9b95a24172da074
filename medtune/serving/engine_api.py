"""Chat requests that the engine in this process answers."""

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from medtune.errors import MedtuneError
from medtune.generation.requests import Request as EngineRequest
from medtune.serving.app import read_body
from medtune.serving.chat import ChatCall, Defaults, read_call
from medtune.serving.errors import ApiError, of_engine
from medtune.serving.limits import Limits
from medtune.serving.metrics import Metrics
from medtune.serving.prompts import Served
from medtune.serving.replies import EventStream, Form
from medtune.serving.ticket import ClientGone, Mailbox, Ticket
from medtune.serving.worker import Worker

log = logging.getLogger("medtune.serving")
NO_MODEL = "-"


@dataclass(frozen=True)
class EngineApi:
    """A loaded model, its engine, and its settings."""

    served: Served
    worker: Worker
    limits: Limits
    defaults: Defaults
    metrics: Metrics
    _mailboxes: dict[asyncio.AbstractEventLoop, Mailbox] = field(default_factory=dict)

    def mailbox(self) -> Mailbox:
        """Return the mailbox of the running event loop."""
        loop = asyncio.get_running_loop()
        return self._mailboxes.setdefault(loop, Mailbox(loop))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the models."""
        return self.served.models.names

    @property
    def created(self) -> int:
        """When the model was loaded."""
        return self.served.created

    def status(self) -> str:
        """Return ``ok``, ``stopping`` or ``failed``."""
        return "failed" if self.worker.failed else "ok" if self.worker.accepting else "stopping"

    async def chat(self, request: Request) -> Response:
        """Answer a chat request."""
        return await _Chat(self, request).reply()

    def stop(self) -> None:
        """Take no new requests, and end the others within the limit."""
        self.worker.stop()

    def close(self) -> None:
        """End every request."""
        self.worker.close()


class _Chat:
    """One request to ``/v1/chat/completions``."""

    def __init__(self, parts: EngineApi, request: Request) -> None:
        self.parts, self.request, self.arrived = parts, request, time.monotonic()
        self.model, self.name, self.images = NO_MODEL, NO_MODEL, 0
        self.ticket: Ticket | None = None

    async def reply(self) -> Response:
        """Answer."""
        try:
            call, made = await self._read()
            parts, receive = self.parts, self.request.receive
            ticket = Ticket(parts.served, parts.worker, parts.mailbox(), made, call.stops, receive)
            self.ticket = ticket
        except ApiError as error:
            self._finish(error.status, str(error.code))
            raise
        except ClientGone:
            self._finish(499, "gone")
            raise
        form = Form(ticket, call.model, self.parts.served.models.told(made))
        try:
            if call.stream:
                first = await ticket.next()
                return EventStream(form, first, call.include_usage, self._finish)
            return await self._whole(form)
        except ApiError as error:
            self._close(error.status, str(error.code))
            raise
        except ClientGone:
            self._close(499, "gone")
            raise
        except BaseException:
            self._close(500, "failed")
            raise

    async def _whole(self, form: Form) -> Response:
        text, reason = "", None
        while reason is None:
            piece = await form.ticket.next()
            text, reason = text + piece.text, piece.reason
        body = form.whole(text, reason)
        self._close(200, reason)
        return JSONResponse(body)

    async def _read(self) -> tuple[ChatCall, EngineRequest]:
        raw = await read_body(self.request, self.parts.limits)
        call = await asyncio.to_thread(read_call, raw, self.parts.limits, self.parts.defaults)
        self.parts.served.check(call.model)
        self.model, self.images = call.model, len(call.images)
        try:
            made = await asyncio.to_thread(self.parts.served.request, call)
        except MedtuneError as error:
            raise of_engine(error) from None
        self.name = made.id
        return call, made

    def _close(self, status: int, how: str) -> None:
        assert self.ticket is not None
        self.ticket.close()
        self._finish(status, how)

    def _finish(self, status: int, how: str) -> None:
        """Count the request, and log it without anything that it said."""
        metrics, ticket = self.parts.metrics, self.ticket
        metrics.requests.labels(self.model, str(status)).inc()
        metrics.images.inc(self.images)
        route: Mapping[str, Any] = self.parts.served.models.told(ticket.request) if ticket else {}
        if route:
            metrics.routed.labels(str(route.get("adapter"))).inc()
        log.info(
            "%s model=%s%s status=%d end=%s images=%d prompt_tokens=%d tokens=%d seconds=%.3f",
            self.name,
            self.model,
            f" adapter={route.get('adapter')}" if route else "",
            status,
            how,
            self.images,
            ticket.prompt_tokens if ticket else 0,
            ticket.tokens if ticket else 0,
            time.monotonic() - self.arrived,
        )
