"""A real HTTP server on loopback that speaks the part of OpenAI's chat API that medtune uses."""

import base64
import io
import json
import threading
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from tests.loopback import PATIENCE, LoopbackHandler, LoopbackServer, serving

MODEL = "tiny-vlm"


@dataclass
class ChatServer(LoopbackServer):
    """What it was told to do, and what it saw.

    Attributes:
        fail_every: Every n-th chat request gets status 500; 0 for none.
        slow: Seconds that a prompt takes which holds ``slow_word``.
        overtaken: Such a prompt is answered after this number of others, or ``PATIENCE`` seconds.
        status: If set, each chat request gets this status.
        page, page_type: If set, what is sent for everything.
        models: Names on the list of models; None for a server without the list.
        say: If set, the answer to everything.
        bodies: Bodies of the chat requests that were answered.
        heads: Authorization headers of all requests.
        attempts: Number of chat requests.
        failed: Number of requests that were failed on purpose.
    """

    fail_every: int = 0
    slow: float = 0.0
    slow_word: str = "slow"
    overtaken: int = 0
    status: int | None = None
    page: bytes | None = None
    page_type: str = "text/html"
    models: tuple[str, ...] | None = (MODEL,)
    say: str | None = None
    bodies: list[dict] = field(default_factory=list)
    heads: list[str | None] = field(default_factory=list)
    attempts: int = 0
    failed: int = 0
    passed: threading.Event = field(default_factory=threading.Event)

    def reply(self, body: dict) -> tuple[int, dict]:
        """Status and body of the answer to one chat request."""
        with self.lock:
            self.attempts += 1
            if self.fail_every and self.attempts % self.fail_every == 0:
                self.failed += 1
                return 500, {"error": {"message": "overloaded"}}
        if self.status:
            words = "the prompt was: " + prompt_of(body)
            return self.status, {"error": {"message": words, "type": "refused", "code": self.status}}
        if self.slow and self.slow_word in prompt_of(body):
            time.sleep(self.slow)
        if self.overtaken and self.slow_word in prompt_of(body):
            self.passed.wait(PATIENCE)
        with self.lock:
            self.bodies.append(body)
            if len(self.bodies) >= self.overtaken:
                self.passed.set()
        text = self.say or answer_to(body)
        words = text.split()
        cut = words[: body["max_tokens"]]
        choice = {
            "index": 0,
            "finish_reason": "length" if len(cut) < len(words) else "stop",
            "message": {"role": "assistant", "content": " ".join(cut)},
        }
        usage = {"prompt_tokens": 9, "completion_tokens": len(cut), "total_tokens": 9 + len(cut)}
        common = {"id": "x", "object": "chat.completion", "created": 0, "model": MODEL}
        return 200, {**common, "choices": [choice], "usage": usage}


def parts_of(body: dict) -> list[dict]:
    """The content parts of the last turn."""
    content = body["messages"][-1]["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def prompt_of(body: dict) -> str:
    """The texts of the last turn."""
    return " ".join(part["text"] for part in parts_of(body) if part["type"] == "text")


def images_of(body: dict) -> list[np.ndarray]:
    """The pictures of the last turn, decoded."""
    links = [part["image_url"]["url"] for part in parts_of(body) if part["type"] == "image_url"]
    assert all(link.startswith("data:image/png;base64,") for link in links)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(link.split(",")[1])))) for link in links]


def answer_to(body: dict) -> str:
    """A text that depends on prompt and picture alone."""
    total = sum(int(image.astype(np.int64).sum()) for image in images_of(body))
    return f"pixels {total} prompt {len(prompt_of(body))} done"


def serve(**options: Any) -> AbstractContextManager[ChatServer]:
    """Run a server in threads for the length of a block."""
    told = ChatServer(**options)
    return serving(told, _handler(told))


def _handler(told: ChatServer) -> type[LoopbackHandler]:
    class Handler(LoopbackHandler):
        def do_GET(self) -> None:
            told.heads.append(self.headers["Authorization"])
            assert self.path == "/v1/models"
            if told.models is None:
                self._send(404, {"error": {"message": "no such page"}})
                return
            data = [{"id": name, "object": "model", "created": 0, "owned_by": "me"} for name in told.models]
            self._send(200, {"object": "list", "data": data})

        def do_POST(self) -> None:
            assert self.path == "/v1/chat/completions"
            told.heads.append(self.headers["Authorization"])
            body = self.read_json()
            with told.in_flight():
                self._send(*told.reply(body))

        def _send(self, status: int, body: dict) -> None:
            headers = {"Content-Type": told.page_type if told.page else "application/json"}
            headers["retry-after-ms"] = "1"  # the client's pauses, made short
            if status in (307, 308):
                headers["Location"] = "http://127.0.0.1:9/v1/chat/completions"
            self.send(status, told.page or json.dumps(body).encode(), headers)

    return Handler
