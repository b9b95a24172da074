"""The page and its API. Whoever has a token sees the questions of one annotator and nothing else."""

import json
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from medtune.annotate.pictures import Pictures
from medtune.annotate.records import Choice, ChosenAlready, Item
from medtune.annotate.shares import Shares
from medtune.annotate.store import Store
from medtune.errors import DataError
from medtune.serving.app import read_body
from medtune.serving.errors import ApiError, internal, refused
from medtune.serving.guard import Guard
from medtune.serving.limits import Limits

PAGE = Path(__file__).parents[1] / "assets" / "annotate"
FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
COMMENT = 4000
LIMITS = Limits(body_mb=0.1)
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cache-Control": "no-store",
}
_SHOWN = {"left": ("first", "second"), "right": ("second", "first"), "both": ("both",) * 2, "neither": ("neither",) * 2}
"""What a button means in the order of the file, without and with swapped answers."""


class Desk:
    """Answers what the page asks.

    Args:
        store: Where questions and choices are.
        shares: Which answer is shown on the left.
        pictures: The images.
    """

    def __init__(self, store: Store, shares: Shares, pictures: Pictures) -> None:
        self.store, self.shares, self.pictures = store, shares, pictures

    def annotator(self, request: Request) -> str:
        """Return who asks.

        Raises:
            ApiError: If the token is missing, unknown, or has ended.
        """
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        known = self.store.who(token.strip()) if kind.lower() == "bearer" and token.strip() else None
        if known is None:
            raise _unauthorized("this token is not known; sign in with the token that you were given", "unknown_token")
        name, ended = known
        if ended:
            raise _unauthorized("this token has ended; ask for a new one. Your choices are stored", "token_ended")
        return name

    def state(self, annotator: str, **more: Any) -> dict[str, Any]:
        """Return the next question and the progress."""
        done, total = self.store.progress(annotator)
        item = self.store.next(annotator)
        shown = None if item is None else self.shown(annotator, item)
        return {"annotator": annotator, "done": done, "total": total, "item": shown, **more}

    def shown(self, annotator: str, item: Item) -> dict[str, Any]:
        """Return a question as an annotator sees it: nothing tells which answer is the first of the file."""
        row, swapped = item.row, self.shares.swapped(annotator, item.row.id)
        mentions = row.meta.get("mentions")
        return {
            "number": item.number,
            "id": row.id,
            "question": row.question,
            "caption": str(row.meta.get("caption") or ""),
            "mentions": [str(text) for text in mentions] if isinstance(mentions, list) else [],
            "answers": list(reversed(row.answers) if swapped else row.answers),
            "images": len(row.images),
        }

    def choose(self, annotator: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Store a choice, and return the next question.

        Raises:
            ApiError: If the body is no choice, the question is not this annotator's, or is answered otherwise.
        """
        item = self.item(annotator, body.get("number"))
        pressed, comment, seconds = body.get("choice"), body.get("comment", ""), body.get("seconds")
        if not isinstance(pressed, str) or pressed not in _SHOWN:
            raise refused("choice", f"choice must be one of {', '.join(_SHOWN)}")
        if not isinstance(comment, str) or len(comment) > COMMENT:
            raise refused("comment", f"the comment must be a text of at most {COMMENT} characters; shorten it")
        timed = isinstance(seconds, int | float) and not isinstance(seconds, bool) and math.isfinite(seconds)
        swapped = self.shares.swapped(annotator, item.row.id)
        choice = Choice(
            _SHOWN[pressed][swapped], comment.strip(), swapped, float(seconds) if timed and seconds else None
        )
        try:
            self.store.choose(annotator, item.number, choice)
        except ChosenAlready:
            message = "you have chosen otherwise for this question already, in another window; undo that choice first"
            raise ApiError(409, message, code="chosen_already") from None
        return self.state(annotator)

    def undo(self, annotator: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Take the latest choice back, and return its question with the comment that it had.

        Raises:
            ApiError: If there is none.
        """
        found = self.store.undo(annotator)
        if found is None:
            raise ApiError(409, "there is no choice to undo", code="nothing_to_undo")
        item, choice = found
        sides = {meaning[bool(choice.swapped)]: pressed for pressed, meaning in _SHOWN.items()}
        return self.state(annotator, undone={"choice": sides[choice.preference], "comment": choice.comment})

    def later(self, annotator: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Put a question at the end, and return the next one.

        Raises:
            ApiError: If the question is not this annotator's.
        """
        self.store.postpone(annotator, self.item(annotator, body.get("number")).number)
        return self.state(annotator)

    def item(self, annotator: str, number: object) -> Item:
        """Return a question of an annotator.

        Raises:
            ApiError: If it is none of theirs.
        """
        known = isinstance(number, int) and not isinstance(number, bool) and 0 < number < 2**62
        item = self.store.item(annotator, int(str(number))) if known else None
        if item is None:
            raise ApiError(404, "this question is not one of yours; load the page again", code="unknown_item")
        return item

    def picture(self, annotator: str, number: int, at: int) -> bytes:
        """Return an image of a question as PNG.

        Raises:
            ApiError: If the question is not this annotator's, or the image is gone.
        """
        row = self.item(annotator, number).row
        if not 0 <= at < len(row.images):
            raise ApiError(404, "the question has no such image", code="unknown_image")
        try:
            return self.pictures.png(row.images[at], f"id {row.id!r}")
        except DataError:
            message = f"image {at + 1} of question {row.id} cannot be read any more; tell whoever runs this page"
            raise ApiError(410, message, code="image_gone") from None


def create_app(desk: Desk, hosts: tuple[str, ...] = ()) -> ASGIApp:
    """Return the application.

    Args:
        desk: Answers what the page asks.
        hosts: Names of the host that are accepted; empty accepts any.
    """
    app = FastAPI(title="medtune annotate", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_exception_handler(ApiError, _told)
    app.add_exception_handler(DataError, _broken)
    app.add_exception_handler(HTTPException, _unknown_page)
    app.add_exception_handler(Exception, _failed)
    for address, (name, kind) in FILES.items():
        app.add_api_route(address, partial(_file, (PAGE / name).read_bytes(), kind), methods=["GET"])

    @app.get("/health")
    async def health() -> JSONResponse:
        return JSONResponse({"status": "ok"})

    @app.get("/api/state")
    async def state(request: Request) -> JSONResponse:
        return JSONResponse(await run_in_threadpool(lambda: desk.state(desk.annotator(request))))

    @app.get("/api/items/{number}/images/{at}")
    async def image(request: Request, number: int, at: int) -> Response:
        data = await run_in_threadpool(lambda: desk.picture(desk.annotator(request), number, at))
        return Response(data, media_type="image/png")

    for action in (desk.choose, desk.undo, desk.later):
        app.add_api_route(f"/api/{action.__name__}", partial(_post, desk, action), methods=["POST"])
    return Headers(Guard(app, None, hosts, LIMITS.write_seconds))


async def _file(data: bytes, kind: str) -> Response:
    return Response(data, media_type=kind)


async def _post(
    desk: Desk, action: Callable[[str, Mapping[str, Any]], dict[str, Any]], request: Request
) -> JSONResponse:
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        raise ApiError(403, "requests from other pages are refused", code="wrong_origin")
    annotator = await run_in_threadpool(desk.annotator, request)
    try:
        body = json.loads(await read_body(request, LIMITS))
    except (ValueError, RecursionError):
        raise refused("body", "the body is not valid JSON") from None
    if not isinstance(body, dict):
        raise refused("body", "the body must be a JSON object")
    return JSONResponse(await run_in_threadpool(action, annotator, body))


def _unauthorized(message: str, code: str) -> ApiError:
    return ApiError(401, message, kind="authentication_error", code=code, headers={"WWW-Authenticate": "Bearer"})


async def _told(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body(), error.status, error.headers)


async def _broken(_: Request, error: Exception) -> JSONResponse:
    told = ApiError(503, f"{error} Nothing was stored.", kind="server_error", code="store_failed")
    return JSONResponse(told.body(), told.status)


async def _unknown_page(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return JSONResponse(
        ApiError(error.status_code, "there is no such page", code="not_found").body(), error.status_code
    )


async def _failed(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse(internal().body(), 500)  # the guard logs it


class Headers:
    """ASGI middleware that adds :data:`HEADERS` to every reply.

    Args:
        app: The application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""

        async def add(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self.app(scope, receive, add)
