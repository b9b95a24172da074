"""A real server on the loopback address, around a small model, for the length of a block."""

import asyncio
import base64
import io
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import openai
from PIL import Image

from medtune.data.sample import Message, Sample
from medtune.generation.engine.continuous import Engine
from medtune.generation.engine.generator import Generator
from medtune.generation.requests import Request
from medtune.serving.app import create_app
from medtune.serving.chat import Defaults
from medtune.serving.config import ServeConfig
from medtune.serving.engine_api import EngineApi
from medtune.serving.images import ReceivedImages
from medtune.serving.limits import Limits
from medtune.serving.loading import separator_of
from medtune.serving.metrics import Metrics
from medtune.serving.prompts import CountedPrompts, Models, OneModel, Served
from medtune.serving.run import Server
from medtune.serving.worker import Worker

KEY = "a token of this test".replace(" ", "-")


def picture(seed: int, size: tuple[int, int] = (20, 16)) -> Image.Image:
    """Noise."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def uri(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def shown(text: str, *images: bytes) -> list[dict[str, Any]]:
    """A question about images, as messages."""
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": uri(data)}} for data in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


class Shown:
    """The same images as a source, for the answer that a request gets alone."""

    name = "alone"

    def __init__(self, images: Sequence[bytes]) -> None:
        self.images = [Image.open(io.BytesIO(data)).convert("RGB") for data in images]

    def open_images(self, sample: Sample) -> list[Image.Image]:
        return [self.images[int(name)] for name in sample.images]


@dataclass(frozen=True)
class Alone:
    """What the generator says to one request, and the length of its prompt."""

    text: str
    tokens: int
    stopped: bool
    prompt: int

    @property
    def reason(self) -> str:
        return "stop" if self.stopped else "length"


def alone(
    model: Any, transform: Any, messages: str | Sequence[Message], images: Sequence[bytes] = (), **options: Any
) -> Alone:
    """Ask the generator; not while a server has the model."""
    turns = [Message("user", messages)] if isinstance(messages, str) else messages
    sample, source = Sample("alone", tuple(map(str, range(len(images)))), tuple(turns)), Shown(images)
    request = Request("alone", sample, source, **options)  # type: ignore[arg-type]
    (answer,) = Generator(model, transform, batch_size=1, share_prefix=False)([request])
    prompt = len(transform(sample, source.open_images(sample), inference=True)["tokens"])
    return Alone(answer.text, answer.tokens, answer.stopped, prompt)


@dataclass
class Running:
    """A server that runs.

    Attributes:
        url: Its address with ``/v1``.
        parts: What it is made of.
        server: The web server.
    """

    url: str
    parts: EngineApi
    server: Server
    clients: list[Any] = field(default_factory=list)

    @property
    def root(self) -> str:
        return self.url.removesuffix("/v1")

    @property
    def port(self) -> int:
        return int(self.root.rpartition(":")[2])

    def client(self, key: str = "none", **options: Any) -> openai.OpenAI:
        """The real client."""
        made = openai.OpenAI(base_url=self.url, api_key=key, max_retries=0, timeout=60, **options)
        self.clients.append(made)
        return made

    def metric(self, name: str, **labels: str) -> float:
        return self.parts.metrics.registry.get_sample_value(name, labels) or 0.0


@contextmanager
def serving(
    model: Any,
    transform: Any,
    *,
    slots: int = 4,
    token: str | None = None,
    limits: Limits | None = None,
    models: Models | None = None,
    extension: Any = None,
    hosts: tuple[str, ...] = (),
    **defaults: Any,
) -> Iterator[Running]:
    """Run a server in a thread."""
    prompts, images, limits = CountedPrompts(transform), ReceivedImages(10**6), limits or Limits()

    def open_engine() -> Engine:
        return Engine(model, prompts, slots=slots, extension=extension)  # type: ignore[arg-type]

    served = Served(models or OneModel("tiny"), open_engine, prompts, images, images)
    metrics = Metrics()
    worker = Worker(open_engine, limits, metrics)
    chosen = Defaults(**{"max_new_tokens": 8, "separator": separator_of(transform), **defaults})
    parts = EngineApi(served, worker, limits, chosen, metrics)
    config = ServeConfig(source="none", port=0, limits=limits)
    server = Server(create_app(parts, token, hosts), parts, config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    until(lambda: server.started)
    running = Running(server.url, parts, server)
    try:
        yield running
    finally:
        for client in running.clients:
            client.close()
        server.handle_exit(0, None)
        thread.join(30)
        worker.close()
        assert not thread.is_alive()
        assert images.held == 0 and prompts.remembered == 0, "a request was not forgotten"


def until(condition: Any, seconds: float = 20) -> None:
    """Wait for something that happens soon."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)
