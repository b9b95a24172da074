"""A loopback server that writes conversations by a rule and fails as it is told, and figures to ask it about."""

import json
import random
import re
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from medtune.curation.figures import MODALITIES
from tests.judges.judge_server import FAULTS, MODEL, completion, decoded
from tests.loopback import LoopbackHandler, LoopbackServer, serving
from tests.recipe_modules import load_recipe

_CAPTION = re.compile(r"\nCaption: (.*)\nSentences that mention it: [^\n]*\n\n(?!.*\nCaption: )", re.DOTALL)


def two_questions(caption: str) -> str:
    """A conversation of two questions that names the figure."""
    return f"User: What is in {caption}\nAssistant: A lesion.\nUser: Where?\nAssistant: In {caption}"


def two_answers(caption: str) -> str:
    """Two questions with two answers each, of which the second question's are identical."""
    return (
        f"User: What is in {caption}\nAssistant 1: A lesion.\nAssistant 2: A large lesion.\n"
        "User: Where?\nAssistant 1: Left.\nAssistant 2:  Left."
    )


@dataclass
class CurateServer(LoopbackServer):
    """What it is told, and what it saw.

    Attributes:
        say: The target's caption to the text of the reply; None declines, a dict is a whole choice, an int a status.
        faults: Share of the requests that fail, each in one of :data:`FAULTS` by chance.
        busy_until: Requests before this number are refused with 429.
        hang: Seconds that a request takes which times out.
        on_request: Called with the number of a chat request before it is answered.
        asked: How often each caption was answered with status 200 and a whole body.
        failed: Kinds of failures that were sent.
        bodies: Of all chat requests; kept only if ``keep`` is set.
        images: SHA-256 of the pixels of each image that came, by caption.
        requests: Number of chat requests.
    """

    say: Callable[[str], Any] = two_questions
    faults: float = 0.0
    busy_until: int = 0
    hang: float = 0.0
    keep: bool = True
    on_request: Callable[[int], None] | None = None
    asked: Counter = field(default_factory=Counter)
    failed: Counter = field(default_factory=Counter)
    bodies: list[dict] = field(default_factory=list)
    images: dict[str, list[str]] = field(default_factory=dict)
    requests: int = 0
    rng: random.Random = field(default_factory=lambda: random.Random(0))

    def reply(self, body: dict) -> tuple[int, bytes]:
        """Status and body for one chat request."""
        parts = body["messages"][-1]["content"]
        parts = [{"type": "text", "text": parts}] if isinstance(parts, str) else parts
        text = "\n" + "\n".join(part["text"] for part in parts if part["type"] == "text")
        found = _CAPTION.search(text)
        assert found is not None, text
        caption = found[1].rpartition("\nCaption: ")[2]
        images = [decoded(part["image_url"]["url"]) for part in parts if part["type"] == "image_url"]
        with self.lock:
            self.requests += 1
            number = self.requests
            self.images[caption] = images
            if self.keep:
                self.bodies.append(body)
            fault = self.rng.choice(FAULTS) if self.rng.random() < self.faults else ""
            fault = "429" if number < self.busy_until else fault
            said = self.say(caption)
            if fault:
                self.failed[fault] += 1
            else:
                self.asked[caption] += 1
        if self.on_request is not None:
            self.on_request(number)
        if isinstance(said, int) and not fault:
            return said, json.dumps({"error": {"message": text}}).encode()
        if fault in ("429", "500"):
            return int(fault), json.dumps({"error": {"message": text}}).encode()
        if fault == "timeout":
            time.sleep(self.hang)
        whole = completion(said if isinstance(said, str) else "")
        if not isinstance(said, str):
            whole["choices"][0] |= {"message": {"role": "assistant", "content": None}} if said is None else said
        raw = json.dumps(whole).encode()
        return 200, raw[: len(raw) // 2] if fault == "half" else raw


def serve(**options: Any) -> AbstractContextManager[CurateServer]:
    """Run a server in threads for the length of a block."""
    told = CurateServer(**options)
    return serving(told, _handler(told))


def _handler(told: CurateServer) -> type[LoopbackHandler]:
    class Handler(LoopbackHandler):
        def do_GET(self) -> None:
            self._send(200, json.dumps({"object": "list", "data": [{"id": MODEL}]}).encode())

        def do_POST(self) -> None:
            body = self.read_json()
            with told.in_flight():
                self._send(*told.reply(body))

        def _send(self, status: int, raw: bytes) -> None:
            self.send(status, raw, {"Content-Type": "application/json", "retry-after-ms": "1"})

    return Handler


def write_figures(folder: Path, count: int, images: bool = True) -> list[dict[str, Any]]:
    """Write ``figures.json``, ``images`` and ``demonstrations.json``, two of each modality."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        name = f"{number}.png"
        if images:
            pixels = np.random.default_rng(number).integers(0, 256, (6, 5, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / name)
        row = {"id": f"f{number}", "image": name, "domain": {MODALITIES[number % 5]: True}}
        rows.append({**row, "caption": f"Figure {number}.", "mentions": [f"See {number} ."]})
    (folder / "figures.json").write_text(json.dumps(rows))
    shown = [
        {
            "id": f"{modality}_{number}",
            "image": f"{modality}_{number}.jpg",
            "domain": {modality: True},
            "caption": f"Demonstration {number} of {modality}.",
            "conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": f"A {modality}."}],
        }
        for modality in MODALITIES
        for number in range(3)
    ]
    (folder / "demonstrations.json").write_text(json.dumps(shown))
    return rows


def served(folder: Path, url: str, *more: str, out: str = "out") -> list[str]:
    """The words of a run."""
    return [
        "--config",
        "curate/openai_server",
        f"figures={folder / 'figures.json'}",
        f"image_root={folder / 'images'}",
        f"demonstrations={folder / 'demonstrations.json'}",
        f"output_dir={folder / out}",
        f"server.base_url={url}",
        f"server.model={MODEL}",
        "server.concurrency=4",
        "server.timeout=20",
        *more,
    ]


def text_only(folder: Path, url: str, *more: str, out: str = "out") -> list[str]:
    """The words of a run that opens no image and shows no demonstration."""
    bare = ("demonstrations=null", "image_root=null", "writing.prompt=conversation_text-v1")
    return served(folder, url, *bare, *more, out=out)


def curate(*words: str) -> int:
    """Run the recipe in this process; its exit status."""
    return load_recipe("curate").main(list(words))


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def manifest_of(folder: Path, out: str = "out") -> dict[str, Any]:
    """The manifest of a run."""
    return json.loads((folder / out / "manifest.json").read_text(encoding="utf-8"))
