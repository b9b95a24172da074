"""A real HTTP server on loopback whose replies to chat requests are written out one by one."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

GOOD = {
    "id": "x",
    "object": "chat.completion",
    "created": 0,
    "model": "m",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "fine"}}],
    "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9},
}


@dataclass
class Reply:
    """One reply to a chat request.

    Attributes:
        status: HTTP status.
        body: Sent as JSON, bytes as they are.
        headers: Beside length and type.
        missing: Bytes that are announced and never sent; the connection is then closed.
        wait: Seconds before it is sent.
        echo: Put the key and the prompt into the error's message, type and code, and into the request id.
    """

    status: int = 200
    body: Any = field(default_factory=lambda: GOOD)
    headers: dict[str, str] = field(default_factory=dict)
    missing: int = 0
    wait: float = 0.0
    echo: bool = False


@dataclass
class FaultyServer:
    """What it says, and what it was asked.

    Attributes:
        replies: Taken one after another; the last one stays.
        bodies: Of the chat requests.
        headers: Of the chat requests.
        times: When each chat request came, in seconds of a monotonic clock.
    """

    replies: list[Reply]
    url: str = ""
    bodies: list[dict] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, body: dict, headers: dict[str, str]) -> Reply:
        """The next reply."""
        with self.lock:
            self.times.append(time.monotonic())
            self.bodies.append(body)
            self.headers.append(headers)
            return self.replies[min(len(self.bodies), len(self.replies)) - 1]


@contextmanager
def serve(*replies: Reply) -> Iterator[FaultyServer]:
    """Run a server in threads for the length of a block."""
    told = FaultyServer(list(replies) or [Reply()])
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(told))
    told.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield told
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(told: FaultyServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            headers = {name.lower(): value for name, value in self.headers.items()}
            reply = told.take(body, headers)
            time.sleep(reply.wait)
            more, content = dict(reply.headers), reply.body
            if reply.echo:
                words = f"{headers['authorization']} {json.dumps(body['messages'])}"
                key = headers["authorization"].removeprefix("Bearer ")
                content = {"error": {"message": words, "type": key, "code": key, "param": words}}
                more["x-request-id"] = key
            raw = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(reply.status, more.pop("reason", None))
            for name, value in {"Content-Type": "application/json", **more}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(raw) + reply.missing))
            self.end_headers()
            try:
                self.wfile.write(raw)
            except OSError:  # the client has given up waiting
                pass
            self.close_connection = bool(reply.missing)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler
