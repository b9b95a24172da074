"""A loopback server that judges by a rule, and fails as it is told: what it was asked, and how often, is kept."""

import base64
import io
import json
import random
import re
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from medtune.clients.messages import pixels_sha256
from tests.loopback import LoopbackHandler, LoopbackServer, serving

MODEL = "rule"
FAULTS = ("429", "500", "timeout", "half")
OTHER_LANGUAGE = "第一个回答更好，我给它八分。"
_PROMPT = re.compile(
    r"Question:\n(.*?)\n\n(?:<right_answer>.*?</right_answer>\n\n)?"
    r"<answer_[1A]>\n(.*?)\n</answer_[1A]>\n\n<answer_[2B]>\n(.*?)\n</answer_[2B]>",
    re.DOTALL,
)
_REFERENCE = re.compile(r"Question:\n(.*?)\n\nAnswer as an expert", re.DOTALL)


def fewer_letters(question: str, first: str, second: str) -> str:
    """The shorter answer is better: two scores on the scale."""
    return f"{10 - min(len(first), 90) / 10:g} {10 - min(len(second), 90) / 10:g}"


@dataclass
class JudgeServer(LoopbackServer):
    """What it is told, and what it saw.

    Attributes:
        say: Question, first and second answer to the text of the reply.
        refer: Question to the reference answer, for a prompt that asks for one.
        faults: Share of the requests that fail, each in one of :data:`FAULTS` by chance.
        foreign: Share of the requests that are answered in another language.
        status: Status of every reply that is no fault.
        hang: Seconds that a request takes which times out.
        on_request: Called with the number of a chat request before it is answered.
        asked: How often each (question, first answer) was answered with status 200 and a whole body.
        failed: Kinds of failures that were sent.
        images: SHA-256 of the pixels of each image that came, in order.
        bodies: Bodies of all chat requests.
        authorizations: Of all chat requests.
    """

    say: Callable[[str, str, str], str] = fewer_letters
    refer: Callable[[str], str] = "The answer to: {}".format
    faults: float = 0.0
    foreign: float = 0.0
    status: int = 200
    hang: float = 0.0
    delay: float = 0.0
    on_request: Callable[[int], None] | None = None
    asked: Counter = field(default_factory=Counter)
    failed: Counter = field(default_factory=Counter)
    images: list[str] = field(default_factory=list)
    bodies: list[dict] = field(default_factory=list)
    authorizations: list[str | None] = field(default_factory=list)
    rng: random.Random = field(default_factory=lambda: random.Random(0))

    def reply(self, body: dict) -> tuple[int, bytes]:
        """Status and body for one chat request; a body of no bytes is for one that hangs."""
        parts = body["messages"][-1]["content"]
        parts = [{"type": "text", "text": parts}] if isinstance(parts, str) else parts
        text = "\n".join(part["text"] for part in parts if part["type"] == "text")
        found, wanted = _PROMPT.search(text), _REFERENCE.search(text)
        assert found is not None or wanted is not None, text
        with self.lock:
            self.bodies.append(body)
            self.images += [decoded(part["image_url"]["url"]) for part in parts if part["type"] == "image_url"]
            number = len(self.bodies)
            fault = self.rng.choice(FAULTS) if self.rng.random() < self.faults else ""
            said = self.refer(wanted[1]) if wanted else self.say(*found.groups())  # type: ignore[union-attr]
            said = OTHER_LANGUAGE if found and self.rng.random() < self.foreign else said
            if fault:
                self.failed[fault] += 1
            else:
                self.asked[(wanted[1], "") if wanted else found.groups()[:2]] += 1  # type: ignore[union-attr]
        if self.on_request is not None:
            self.on_request(number)
        if fault in ("429", "500"):
            return int(fault), json.dumps({"error": {"message": text}}).encode()
        if fault == "timeout":
            time.sleep(self.hang)
        time.sleep(self.delay)
        raw = json.dumps(completion(said)).encode()
        return self.status, raw[: len(raw) // 2] if fault == "half" else raw


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


def serve(**options: Any) -> AbstractContextManager[JudgeServer]:
    """Run a server in threads for the length of a block."""
    told = JudgeServer(**options)
    return serving(told, _handler(told))


def _handler(told: JudgeServer) -> type[LoopbackHandler]:
    class Handler(LoopbackHandler):
        def do_GET(self) -> None:
            self._send(200, json.dumps({"object": "list", "data": [{"id": MODEL}]}).encode())

        def do_POST(self) -> None:
            body = self.read_json()
            with told.lock:
                told.authorizations.append(self.headers["Authorization"])
            with told.in_flight():
                self._send(*told.reply(body))

        def _send(self, status: int, raw: bytes) -> None:
            # The client's pauses are made short.
            self.send(status, raw, {"Content-Type": "application/json", "retry-after-ms": "1"})

    return Handler
