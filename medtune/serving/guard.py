"""What every request passes first: names of the host, the token, the time to take a reply, and unexpected errors."""

import asyncio
import hmac
import ipaddress
import json
import logging
import traceback
from collections.abc import Sequence
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from medtune.errors import ConfigError
from medtune.serving.errors import ApiError, internal
from medtune.serving.ticket import ClientGone

log = logging.getLogger("medtune.serving")
OPEN_PATHS = ("/health",)


def is_loopback(host: str) -> bool:
    """Return whether an address can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_exposure(host: str, token: str | None) -> None:
    """Refuse an address that other machines can reach, if no token is needed.

    Raises:
        ConfigError: With what to set.
    """
    if token is None and not is_loopback(host):
        raise ConfigError(
            f"host: {host} can be reached from other machines, so a token is needed: set api_key_env to the name of an "
            "environment variable that holds one, or host=127.0.0.1"
        )


class Guard:
    """ASGI middleware around the application.

    Without a token only requests that name the host by a loopback name are answered: a web page in a browser on this
    machine could otherwise reach the server under a name that it points here.

    Args:
        app: The application.
        token: The bearer token; None for none.
        hosts: Names of the host that are accepted; empty accepts any.
        write_seconds: Time in which a client must take what it is sent.
    """

    def __init__(self, app: ASGIApp, token: str | None, hosts: Sequence[str], write_seconds: float) -> None:
        self.app, self.hosts, self.write_seconds = app, frozenset(hosts), write_seconds
        self._token = None if token is None else token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def write(message: Message) -> None:
            nonlocal started
            started = True
            try:
                async with asyncio.timeout(self.write_seconds):
                    await send(message)
            except TimeoutError:
                raise ClientGone from None

        try:
            error = self._refusal(scope)
            if error is not None:
                await answer(error, write)
            else:
                await self.app(scope, receive, write)
        except ClientGone:
            pass
        except Exception as error:  # its message may hold a request's text, so only its type and place are logged
            frames = "".join(traceback.format_tb(error.__traceback__))
            log.error("%s failed with %s\n%s", scope["path"], type(error).__name__, frames)
            if not started:
                await answer(internal(), write)

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers = {name: value for name, value in scope["headers"] if name in (b"host", b"authorization")}
        if self.hosts and _without_port(headers.get(b"host", b"").decode("latin-1")) not in self.hosts:
            return ApiError(403, "this name of the host is not served; use 127.0.0.1 or localhost", code="wrong_host")
        if self._token is None or scope["path"] in OPEN_PATHS:
            return None
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        if kind.lower() == b"bearer" and hmac.compare_digest(given.strip(), self._token):
            return None
        return ApiError(
            401,
            "the token is missing or wrong; send it as Authorization: Bearer TOKEN",
            kind="authentication_error",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )


async def answer(error: ApiError, send: Send) -> None:
    """Send an error as a reply."""
    body = json.dumps(error.body()).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
    raw: list[tuple[bytes, bytes]] = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    start: dict[str, Any] = {"type": "http.response.start", "status": error.status, "headers": raw}
    await send(start)
    await send({"type": "http.response.body", "body": body})


def _without_port(host: str) -> str:
    name, _, port = host.rpartition(":")
    return (name if port.isdigit() and name else host).strip("[]").lower()
