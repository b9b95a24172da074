"""Questions with images, and the page on a real socket, for the length of a block."""

import argparse
import asyncio
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from medtune.annotate.app import Desk, create_app
from medtune.annotate.pictures import Pictures
from medtune.annotate.records import Choice
from medtune.annotate.run import page_server
from medtune.annotate.shares import Shares
from medtune.annotate.store import Store
from medtune.cli.main import parser
from medtune.data.images import ImageRoot
from medtune.judges.candidates import Candidate

LOOPBACK = ("127.0.0.1", "localhost")
NO_END = None
_READERS = (("Reader 1", "both"), ("Reader 2", "neither"))


def rows(count: int, images: bool = True, **meta: Any) -> list[dict[str, Any]]:
    """Questions as they stand in a file."""
    return [
        {
            "id": f"q{number}",
            "images": [f"{number}.png"] if images else [],
            "messages": [
                {"role": "user", "content": f"<image>Question {number}?" if images else f"Question {number}?"}
            ],
            "answers": [f"First of {number}.", f"Second of {number}."],
            "meta": {"caption": f"Caption {number}", **meta},
        }
        for number in range(count)
    ]


def candidates(count: int, images: bool = False) -> list[Candidate]:
    return [Candidate.from_dict(row, "test") for row in rows(count, images)]


def write_rows(path: Path, given: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in given))
    return path


def write_images(folder: Path, count: int, size: tuple[int, int] = (64, 48)) -> Path:
    """Grey images, and a coloured one at the end."""
    folder.mkdir(exist_ok=True)
    for number in range(count):
        image = Image.linear_gradient("L").resize(size)
        if number == count - 1:
            image = Image.merge("RGB", (image, image, Image.new("L", size, 40)))
        image.save(folder / f"{number}.png")
    return folder


def provide_annotation(folder: Path) -> None:
    """What the commands of docs/annotation.md name: questions, images, and a store with choices of two people."""
    write_rows(folder / "candidates.jsonl", rows(6))
    write_images(folder / "images", 6)
    with Store(folder / "annotations.sqlite", create=True) as store:
        store.prepare(candidates(6, images=True), ["Reader 1", "Reader 2"], Shares(overlap=1.0))
        made = [(f"q{n}", name, "first" if n % 2 else name_choice) for n in range(6) for name, name_choice in _READERS]
        store.take((item, name, Choice(preference), "test") for item, name, preference in made)


@dataclass
class Page:
    """A page that runs.

    Attributes:
        url: Its address.
        store: Its store.
        tokens: Of the annotators.
    """

    url: str
    store: Store
    tokens: dict[str, str]
    desk: Desk

    def call(self, who: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, Any]]:
        """Send one request."""
        sent = {"Authorization": f"Bearer {self.tokens.get(who, who)}", **headers}
        data = None if body is None else json.dumps(body).encode()
        if data is not None:
            sent.setdefault("Content-Type", "application/json")
        request = urllib.request.Request(self.url + path, data, sent)
        try:
            with urllib.request.urlopen(request, timeout=30) as reply:
                return reply.status, json.load(reply)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)


def arguments(*words: str) -> argparse.Namespace:
    return parser().parse_args(["annotate", *words])


@contextmanager
def prepared(
    folder: Path,
    count: int = 6,
    annotators: Sequence[str] = ("one", "two"),
    shares: Shares | None = None,
    given: Sequence[Candidate] | None = None,
) -> Iterator[tuple[Desk, dict[str, str]]]:
    """A store with questions and tokens."""
    shares = shares or Shares(overlap=1.0)
    root = ImageRoot(write_images(folder / "images", count))
    with Store(folder / "store.sqlite", create=True) as store:
        store.prepare(given or candidates(count, images=True), annotators, shares)
        tokens = {name: f"token-of-{name}" for name in annotators}
        for name, token in tokens.items():
            store.set_token(name, token, NO_END)
        yield Desk(store, shares, Pictures(root)), tokens


@contextmanager
def page(folder: Path, count: int = 6, **options: Any) -> Iterator[Page]:
    """A page on a free port, in a thread."""
    with prepared(folder, count, **options) as (desk, tokens):
        server = page_server(create_app(desk, LOOPBACK), arguments("x", "--port", "0"), lambda url: None)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
        thread.start()
        until(lambda: server.started)
        try:
            yield Page(server.url, desk.store, tokens, desk)
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


def until(condition: Any, seconds: float = 20) -> None:
    """Wait for something that happens soon."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
