"""A real HTTP server on loopback whose replies to chat requests are written out one by one."""

import json
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from tests.loopback import LoopbackHandler, LoopbackServer, serving

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
class FaultyServer(LoopbackServer):
    """What it says, and what it was asked.

    Attributes:
        replies: Taken one after another; the last one stays.
        bodies: Of the chat requests.
        headers: Of the chat requests.
        times: When each chat request came, in seconds of a monotonic clock.
    """

    replies: list[Reply]
    bodies: list[dict] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def take(self, body: dict, headers: dict[str, str]) -> Reply:
        """The next reply."""
        with self.lock:
            self.times.append(time.monotonic())
            self.bodies.append(body)
            self.headers.append(headers)
            return self.replies[min(len(self.bodies), len(self.replies)) - 1]


def serve(*replies: Reply) -> AbstractContextManager[FaultyServer]:
    """Run a server in threads for the length of a block."""
    told = FaultyServer(list(replies) or [Reply()])
    return serving(told, _handler(told))


def _handler(told: FaultyServer) -> type[LoopbackHandler]:
    class Handler(LoopbackHandler):
        def do_POST(self) -> None:
            body = self.read_json()
            headers = {name.lower(): value for name, value in self.headers.items()}
            reply = told.take(body, headers)
            time.sleep(reply.wait)
            more, content = {"Content-Type": "application/json", **reply.headers}, reply.body
            if reply.echo:
                words = f"{headers['authorization']} {json.dumps(body['messages'])}"
                key = headers["authorization"].removeprefix("Bearer ")
                content = {"error": {"message": words, "type": key, "code": key, "param": words}}
                more["x-request-id"] = key
            raw = content if isinstance(content, bytes) else json.dumps(content).encode()
            reason = more.pop("reason", None)
            self.send(reply.status, raw, more, reason, reply.missing)
            self.close_connection = bool(reply.missing)

    return Handler
