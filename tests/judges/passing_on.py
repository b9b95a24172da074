"""A loopback server that passes requests on to another one and keeps what was asked, to count requests to a real model.

    python tests/judges/passing_on.py ADDRESS FILE

prints its own address, passes requests on to ADDRESS (up to and with /v1), and writes a line with the SHA-256 of each
request's body to FILE, until the standard input is closed.
"""

import hashlib
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.loopback import LoopbackHandler, LoopbackServer, serving

JSON = {"Content-Type": "application/json"}


@dataclass
class PassingOn(LoopbackServer):
    """What it is told, and what it saw.

    Attributes:
        target: Address of the other server.
        on_request: Called with the number of a chat request before it is passed on.
        bodies: Bodies of all chat requests, as text with sorted keys.
    """

    target: str
    on_request: Callable[[int], None] | None = None
    bodies: list[str] = field(default_factory=list)

    def asked(self, body: Any) -> None:
        """Keep a request."""
        with self.lock:
            self.bodies.append(json.dumps(body, sort_keys=True))
            number = len(self.bodies)
        if self.on_request is not None:
            self.on_request(number)

    def reply(self, path: str, body: Any = None) -> tuple[int, bytes]:
        """Ask the other server; ``path`` begins with ``/v1``."""
        raw = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.target.removesuffix("/v1") + path, raw, JSON)
        try:
            with urllib.request.urlopen(request, timeout=300) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()


def passing_on(target: str, **options: Any) -> AbstractContextManager[PassingOn]:
    """Run a server in threads for the length of a block."""
    told = PassingOn(target=target, **options)

    class Handler(LoopbackHandler):
        def do_GET(self) -> None:
            self.send(*told.reply(self.path), JSON)

        def do_POST(self) -> None:
            body = self.read_json()
            told.asked(body)
            with told.in_flight():
                self.send(*told.reply(self.path, body), JSON)

    return serving(told, Handler)


def main() -> None:
    """Pass on until the standard input is closed."""
    target, path = sys.argv[1:]
    with open(path, "a", encoding="utf-8") as file, passing_on(target) as server:

        def kept(number: int) -> None:
            file.write(hashlib.sha256(server.bodies[number - 1].encode()).hexdigest() + "\n")
            file.flush()

        server.on_request = kept
        print(json.dumps({"url": server.url}), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
