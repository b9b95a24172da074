"""The web server of ``medtune serve`` and of ``medtune annotate``."""

import socket
import sys
from collections.abc import Callable
from typing import Any

import uvicorn
from starlette.types import ASGIApp


class LocalServer(uvicorn.Server):
    """A uvicorn server that says where it listens, and logs no addresses.

    Args:
        app: The application.
        host: Address to listen on.
        port: Its port; 0 takes a free one.
        path: End of the address that users open.
        hint: What is said after the address.
        listening: Called with the address once it is served.
        options: Further options of ``uvicorn.Config``.
    """

    def __init__(
        self,
        app: ASGIApp,
        host: str,
        port: int,
        path: str,
        hint: str = "",
        listening: Callable[[str], None] = lambda url: None,
        **options: Any,
    ) -> None:
        self.path, self.hint, self.listening = path, hint, listening
        super().__init__(
            uvicorn.Config(
                app,
                host=host,
                port=port,
                loop="asyncio",
                http="h11",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,  # it would hold addresses of people; the application logs what it may
                server_header=False,
                **options,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say where."""
        await super().startup(sockets)
        if self.started:
            self.listening(self.url)
            print(f"listening on {self.url}{self.hint}", file=sys.stderr, flush=True)

    @property
    def url(self) -> str:
        """The address, for clients on this machine or in the network."""
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        host = f"[{host}]" if ":" in host else host
        return f"{'https' if self.config.is_ssl else 'http'}://{host}:{port}{self.path}"
