"""The application: ``/v1/chat/completions``, ``/v1/models``, ``/health`` and ``/metrics``."""

import asyncio
from typing import Any, Protocol

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from medtune.serving.errors import ApiError, internal, unknown_model
from medtune.serving.guard import Guard
from medtune.serving.limits import Limits
from medtune.serving.metrics import CONTENT_TYPE, Metrics
from medtune.serving.ticket import ClientGone

_CLOSE = {"Connection": "close"}


class Api(Protocol):
    """What answers behind the application: an engine in this process, or another server."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the models."""
        ...

    @property
    def created(self) -> int:
        """When it was loaded, in seconds since 1970."""
        ...

    @property
    def metrics(self) -> Metrics:
        """Where it counts."""
        ...

    @property
    def limits(self) -> Limits:
        """What one client may ask."""
        ...

    def status(self) -> str:
        """Return ``ok``, ``stopping`` or ``failed``."""
        ...

    async def chat(self, request: Request) -> Response:
        """Answer a chat request.

        Raises:
            ApiError: If it cannot be answered.
            ClientGone: If the client has hung up.
        """
        ...

    def stop(self) -> None:
        """Take no new requests."""
        ...

    def close(self) -> None:
        """End everything."""
        ...


def create_app(api: Api, token: str | None = None, hosts: tuple[str, ...] = ()) -> ASGIApp:
    """Return the application.

    Args:
        api: Answers the requests.
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
        status = api.status()
        return JSONResponse({"status": status}, 200 if status == "ok" else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(api.metrics.text(), media_type=CONTENT_TYPE)

    @app.get("/v1/models")
    async def models() -> JSONResponse:
        return JSONResponse({"object": "list", "data": [_entry(api, name) for name in api.names]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> JSONResponse:
        if name not in api.names:
            raise unknown_model(api.names)
        return JSONResponse(_entry(api, name))

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await api.chat(request)

    return Guard(app, token, hosts, api.limits.write_seconds)


def _entry(api: Api, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": api.created, "owned_by": "medtune"}


async def _told(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body(), error.status, error.headers)


async def _unknown_page(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    told = ApiError(error.status_code, "there is no such page; the API is below /v1", code="not_found")
    return JSONResponse(told.body(), told.status, error.headers)


async def _failed(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse(internal().body(), 500)  # the guard logs it


async def read_body(request: Request, limits: Limits) -> bytes:
    """Return a request's body, which must be announced as JSON.

    Raises:
        ApiError: If it is of another type, too large, or comes too slowly.
        ClientGone: If the client hangs up.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # a web page may send other types without asking first
        raise ApiError(415, "the body must be sent as application/json", code="unsupported_media_type")
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
