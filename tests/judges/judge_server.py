"""A loopback server that judges by a rule, and fails as it is told: what it was asked, and how often, is kept."""

import base64
import io
import json
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image

from medtune.clients.messages import pixels_sha256

MODEL = "rule"
FAULTS = ("429", "500", "timeout", "half")
OTHER_LANGUAGE = "第一个回答更好，我给它八分。"
_PROMPT = re.compile(r"Question:\n(.*?)\n\n<answer_1>\n(.*?)\n</answer_1>\n\n<answer_2>\n(.*?)\n</answer_2>", re.DOTALL)


def fewer_letters(question: str, first: str, second: str) -> str:
    """The shorter answer is better: two scores on the scale."""
    return f"{10 - min(len(first), 90) / 10:g} {10 - min(len(second), 90) / 10:g}"


@dataclass
class JudgeServer:
    """What it is told, and what it saw.

    Attributes:
        say: Question, first and second answer to the text of the reply.
        faults: Share of the requests that fail, each in one of :data:`FAULTS` by chance.
        foreign: Share of the requests that are answered in another language.
        hang: Seconds that a request takes which times out.
        on_request: Called with the number of a chat request before it is answered.
        url: Its address.
        asked: How often each (question, first answer) was answered with status 200 and a whole body.
        failed: Kinds of failures that were sent.
        images: SHA-256 of the pixels of each image that came, in order.
        bodies: Bodies of all chat requests.
        authorizations: Of all chat requests.
        running, most: Requests in flight now, and the most there were at once.
    """

    say: Callable[[str, str, str], str] = fewer_letters
    faults: float = 0.0
    foreign: float = 0.0
    hang: float = 0.0
    delay: float = 0.0
    on_request: Callable[[int], None] | None = None
    url: str = ""
    asked: Counter = field(default_factory=Counter)
    failed: Counter = field(default_factory=Counter)
    images: list[str] = field(default_factory=list)
    bodies: list[dict] = field(default_factory=list)
    authorizations: list[str | None] = field(default_factory=list)
    running: int = 0
    most: int = 0
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    lock: threading.Lock = field(default_factory=threading.Lock)

    def reply(self, body: dict) -> tuple[int, bytes]:
        """Status and body for one chat request; a body of no bytes is for one that hangs."""
        parts = body["messages"][-1]["content"]
        parts = [{"type": "text", "text": parts}] if isinstance(parts, str) else parts
        text = "\n".join(part["text"] for part in parts if part["type"] == "text")
        found = _PROMPT.search(text)
        assert found is not None, text
        with self.lock:
            self.bodies.append(body)
            self.images += [decoded(part["image_url"]["url"]) for part in parts if part["type"] == "image_url"]
            number = len(self.bodies)
            fault = self.rng.choice(FAULTS) if self.rng.random() < self.faults else ""
            said = OTHER_LANGUAGE if self.rng.random() < self.foreign else self.say(*found.groups())
            if fault:
                self.failed[fault] += 1
            else:
                self.asked[found[1], found[2]] += 1
        if self.on_request is not None:
            self.on_request(number)
        if fault in ("429", "500"):
            return int(fault), json.dumps({"error": {"message": text}}).encode()
        if fault == "timeout":
            time.sleep(self.hang)
        time.sleep(self.delay)
        raw = json.dumps(completion(said)).encode()
        return 200, raw[: len(raw) // 2] if fault == "half" else raw


def completion(text: str) -> dict[str, Any]:
    """A chat completion."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    return {"id": "x", "object": "chat.completion", "created": 0, "model": MODEL, "choices": [choice], "usage": usage}


def decoded(uri: str) -> str:
    """SHA-256 of the pixels of an image in a data URI."""
    head, _, data = uri.partition(",")
    assert head == "data:image/png;base64", head
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    image.load()
    return pixels_sha256(image)


@contextmanager
def serve(**options: Any) -> Iterator[JudgeServer]:
    """Run a server in threads for the length of a block."""
    told = JudgeServer(**options)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(told))
    server.daemon_threads = True
    told.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield told
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(told: JudgeServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._send(200, json.dumps({"object": "list", "data": [{"id": MODEL}]}).encode())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with told.lock:
                told.authorizations.append(self.headers["Authorization"])
                told.running += 1
                told.most = max(told.most, told.running)
            try:
                self._send(*told.reply(body))
            finally:
                with told.lock:
                    told.running -= 1

        def _send(self, status: int, raw: bytes) -> None:
            try:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(raw)))
                self.send_header("retry-after-ms", "1")  # the client's pauses, made short
                self.end_headers()
                self.wfile.write(raw)
            except OSError:  # the client has given up waiting, or is dead
                self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler
