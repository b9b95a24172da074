"""The application: ``/v1/chat/completions``, ``/v1/models``, ``/health`` and ``/metrics``."""

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from medtune.errors import MedtuneError
from medtune.generation.requests import Request as EngineRequest
from medtune.serving.chat import ChatCall, Defaults, read_call
from medtune.serving.errors import ApiError, internal, of_engine
from medtune.serving.guard import Guard
from medtune.serving.limits import Limits
from medtune.serving.metrics import CONTENT_TYPE, Metrics
from medtune.serving.prompts import Served
from medtune.serving.replies import EventStream, Form
from medtune.serving.ticket import ClientGone, Ticket
from medtune.serving.worker import Worker

log = logging.getLogger("medtune.serving")
NO_MODEL = "-"
_CLOSE = {"Connection": "close"}


@dataclass(frozen=True)
class Parts:
    """What the application is made of."""

    served: Served
    worker: Worker
    limits: Limits
    defaults: Defaults
    metrics: Metrics


def create_app(parts: Parts, token: str | None = None, hosts: tuple[str, ...] = ()) -> ASGIApp:
    """Return the application.

    Args:
        parts: The model and its settings.
        token: The bearer token; None for none.
        hosts: Names of the host that are accepted; empty accepts any.
    """
    # No pages of documentation: they load scripts from another server.
    app = FastAPI(title="medtune", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_exception_handler(ApiError, _told)
    app.add_exception_handler(HTTPException, _unknown_page)
    app.add_exception_handler(Exception, _failed)

    @app.get("/health")
    async def health() -> JSONResponse:
        worker = parts.worker
        status = "failed" if worker.failed else "ok" if worker.accepting else "stopping"
        return JSONResponse({"status": status}, 200 if status == "ok" else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(parts.metrics.text(), media_type=CONTENT_TYPE)

    @app.get("/v1/models")
    async def models() -> JSONResponse:
        return JSONResponse({"object": "list", "data": [_entry(parts, name) for name in parts.served.models.names]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> JSONResponse:
        parts.served.check(name)
        return JSONResponse(_entry(parts, name))

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await _Chat(parts, request).reply()

    return Guard(app, token, hosts, parts.limits.write_seconds)


def _entry(parts: Parts, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": parts.served.created, "owned_by": "medtune"}


async def _told(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body(), error.status, error.headers)


async def _unknown_page(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    told = ApiError(error.status_code, "there is no such page; the API is below /v1", code="not_found")
    return JSONResponse(told.body(), told.status, error.headers)


async def _failed(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse(internal().body(), 500)  # the guard logs it


class _Chat:
    """One request to ``/v1/chat/completions``."""

    def __init__(self, parts: Parts, request: Request) -> None:
        self.parts, self.request, self.arrived = parts, request, time.monotonic()
        self.model, self.name, self.ticket = NO_MODEL, NO_MODEL, None
        self.images = 0

    async def reply(self) -> Response:
        """Answer."""
        try:
            call, made = await self._read()
            self.ticket = Ticket(self.parts.served, self.parts.worker, made, call.stops, self.request.receive)
        except ApiError as error:
            self._finish(error.status, str(error.code))
            raise
        except ClientGone:
            self._finish(499, "gone")
            raise
        form = Form(self.ticket, call.model, self.parts.served.models.told(made))
        try:
            if call.stream:
                first = await self.ticket.next()
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
        assert self.ticket is not None
        while reason is None:
            piece = await self.ticket.next()
            text, reason = text + piece.text, piece.reason
        body = form.whole(text, reason)
        self._close(200, reason)
        return JSONResponse(body)

    async def _read(self) -> tuple[ChatCall, EngineRequest]:
        kind = self.request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # a web page may send other types without asking first
            raise ApiError(415, "the body must be sent as application/json", code="unsupported_media_type")
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


async def read_body(request: Request, limits: Limits) -> bytes:
    """Return a request's body.

    Raises:
        ApiError: If it is too large, or comes too slowly.
        ClientGone: If the client hangs up.
    """
    most, pieces, size = limits.body_bytes, list[bytes](), 0
    declared = request.headers.get("content-length", "")
    too_large = declared.isascii() and declared.isdigit() and int(declared) > most
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for piece in request.stream():
                size += len(piece)
                too_large = too_large or size > most
                if too_large:
                    pieces.clear()
                    # A client that is still sending does not read: what is a little too large is taken and dropped.
                    if size > 2 * most:
                        break
                else:
                    pieces.append(piece)
    except TimeoutError:
        raise ApiError(
            408, f"the body did not arrive within {limits.body_seconds:g} s", code="slow_body", headers=_CLOSE
        ) from None
    except ClientDisconnect:
        raise ClientGone from None
    if too_large:
        raise ApiError(
            413,
            f"the body is larger than {limits.body_mb:g} MB; send fewer or smaller images",
            code="body_too_large",
            headers=_CLOSE,
        )
    return b"".join(pieces)
