"""What the HTTP servers of the tests have in common: a loopback address, threads, and requests and replies in JSON."""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar

PATIENCE = 10.0
"""Seconds that a handler waits for other requests."""


@dataclass(kw_only=True)
class LoopbackServer:
    """What every server keeps; the servers add what they are told and what they saw.

    Attributes:
        url: Its address.
        running, most: Requests in flight now, and the most there were at once.
        together: The first requests wait until this many are in flight at once, for ``PATIENCE`` seconds at most. So
            ``most`` tells apart a client that sends them at once, however slow the machine is.
        lock: Held while a handler changes a field.
    """

    url: str = ""
    running: int = 0
    most: int = 0
    together: int = 1
    lock: threading.Lock = field(default_factory=threading.Lock)
    gathered: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def in_flight(self) -> Iterator[None]:
        """Count a request for the length of a block."""
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)
            if self.most >= self.together:
                self.gathered.set()
        self.gathered.wait(PATIENCE)
        self.gathered.set()  # whoever came alone is not held again
        try:
            yield
        finally:
            with self.lock:
                self.running -= 1


class LoopbackHandler(BaseHTTPRequestHandler):
    """Connections stay open, and nothing is logged."""

    protocol_version = "HTTP/1.1"

    def read_json(self) -> Any:
        """The request's body."""
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

    def send(
        self, status: int, raw: bytes, headers: Mapping[str, str], reason: str | None = None, missing: int = 0
    ) -> None:
        """Send a reply; its length is announced with ``missing`` bytes that never come."""
        try:
            self.send_response(status, reason)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(raw) + missing))
            self.end_headers()
            self.wfile.write(raw)
        except OSError:  # the client has given up waiting, or is dead
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


Server = TypeVar("Server", bound=LoopbackServer)


@contextmanager
def serving(told: Server, handler: type[LoopbackHandler]) -> Iterator[Server]:
    """Run a server in threads for the length of a block, and enter its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    told.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield told
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
