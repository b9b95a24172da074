"""The loads of benchmark/curation.py: a server with a fixed delay, a plain client of it, and fifty annotators."""

import asyncio
import base64
import contextlib
import http.client
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

MODEL = "fixed"
REPLY = "\n".join(
    f"User: What does part {part} of the figure show?\nAssistant: A lesion of {part} mm with a sharp border."
    for part in range(1, 6)
)
COMPLETION = {
    "id": "x",
    "object": "chat.completion",
    "created": 0,
    "model": MODEL,
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": REPLY}}],
    "usage": {"prompt_tokens": 900, "completion_tokens": 120, "total_tokens": 1020},
}
MODELS = {"object": "list", "data": [{"id": MODEL, "object": "model", "created": 0, "owned_by": "here"}]}


async def _talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float) -> None:
    """Answer the requests of one connection, each after the delay."""
    with contextlib.suppress(asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"(?i)content-length: (\d+)", head)
            if length is not None:
                await reader.readexactly(int(length[1]))
                await asyncio.sleep(delay)
            body = json.dumps(COMPLETION if length is not None else MODELS).encode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body))
            writer.write(body)
            await writer.drain()
    writer.close()


async def _serve(delay: float) -> None:
    server = await asyncio.start_server(
        lambda reader, writer: _talk(reader, writer, delay), "127.0.0.1", 0, backlog=512, limit=1 << 22
    )
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    async with server:
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


def serve(delay: float) -> None:
    """Serve until the standard input is closed; the first line says the address."""
    asyncio.run(_serve(delay))
    os._exit(0)


@contextlib.contextmanager
def fixed_delay(delay: float) -> Iterator[str]:
    """The server in a process of its own: its address."""
    command = [sys.executable, str(Path(__file__)), str(delay)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stdin is not None
        yield child.stdout.readline().strip()
        child.stdin.close()


def plain_loop(url: str, figures: Sequence[tuple[Path, str]], in_flight: int, max_tokens: int) -> list[str]:
    """What one writes without a library: asyncio and openai, ``in_flight`` requests at once, nothing kept or retried.

    Args:
        url: Of the server.
        figures: Image file and text of each request.
        in_flight: Requests at once.
        max_tokens: Of a reply.
    """
    import openai

    async def ask() -> list[str]:
        places = asyncio.Semaphore(in_flight)
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=300) as client:

            async def one(image: Path, text: str) -> str:
                async with places:
                    data = base64.b64encode(image.read_bytes()).decode()
                    content: Any = [
                        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
                        {"type": "text", "text": text},
                    ]
                    reply = await client.chat.completions.create(
                        model=MODEL, messages=[{"role": "user", "content": content}], max_tokens=max_tokens
                    )
                    return reply.choices[0].message.content or ""

            return await asyncio.gather(*(one(image, text) for image, text in figures))

    return asyncio.run(ask())


@contextlib.contextmanager
def annotation_page(folder: Path, names: Sequence[str]) -> Iterator[tuple[str, dict[str, str], Callable[[], None]]]:
    """`medtune annotate` in a process of its own: address, tokens, and what kills it without warning."""
    command = [
        sys.executable, "-m", "medtune.cli.main", "annotate", str(folder / "candidates.jsonl"), "--images",
        str(folder / "images"), "--store", str(folder / "store.sqlite"), "--overlap", "1.0", "--port", "0",
    ]  # fmt: skip
    for name in names:
        command += ["--annotator", name]
    tokens: dict[str, str] = {}
    address = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            for line in child.stdout:
                found = re.search(r"^(.*): (http://[^/]+)/#token=(\S+)", line)
                if found is not None:
                    tokens[found[1]], address = found[3], found[2]
                if len(tokens) == len(names):
                    break
            yield address, tokens, lambda: os.kill(child.pid, signal.SIGKILL)
        finally:
            child.kill()


class Annotator:
    """One person at the page: looks at the image, thinks, chooses; counts what the page has confirmed.

    Args:
        address: Of the page.
        token: Of the person.
        think: Mean seconds between two choices.
        seed: Of the pauses.
    """

    def __init__(self, address: str, token: str, think: float, seed: int) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
        self._headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        self._think, self._rng = think, random.Random(seed)
        self.seconds: list[float] = []
        self.confirmed = 0

    def work(self, barrier: threading.Barrier) -> None:
        """Choose until nothing is left."""
        state = self._call("GET", "/api/state")
        barrier.wait()
        self.seconds.clear()
        while state["item"]:
            number = state["item"]["number"]
            self._call("GET", f"/api/items/{number}/images/0")
            time.sleep(self._think * self._rng.uniform(0.5, 1.5))
            choice = self._rng.choice(("left", "right", "both"))
            state = self._call("POST", "/api/choose", {"number": number, "choice": choice})
            self.confirmed += 1

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        begun = time.perf_counter()
        self._connection.request(method, path, None if body is None else json.dumps(body), self._headers)
        reply = self._connection.getresponse()
        data = reply.read()
        self.seconds.append(time.perf_counter() - begun)
        assert reply.status == 200, (reply.status, data)
        return json.loads(data) if data.startswith(b"{") else None


if __name__ == "__main__":
    serve(float(sys.argv[1]))
