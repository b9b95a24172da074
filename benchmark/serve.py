"""Fifty clients at `medtune serve`, and at transformers' ``generate`` behind the same API, on the same weights.

    python benchmark/serve.py [--clients 50] [--requests 2] [--rounds 5]

A mini LLaVA with random weights is exported and opened in transformers. Both servers are processes of their own with
one thread for the model; the other one is a minimal FastAPI application that reads the same requests, makes the same
prompts and calls ``generate`` for one request after another, streaming its tokens. Each client asks its questions one
after another, every question with a picture of its own, and reads the stream. The servers are asked in turn, round
after round, and a ratio is the median of the rounds' own ratios. Greedy, no stop token: all answers have one length.
"""

import argparse
import asyncio
import base64
import contextlib
import http.client
import io
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from PIL import Image

from medtune.config import Component, instantiate
from medtune.data.sample import Sample
from medtune.evaluation.provenance import commit, hardware, versions
from medtune.models.mini import mini_llava, train_mini_tokenizer
from medtune.models.weights import save_hf
from medtune.serving.chat import Defaults, read_call
from medtune.serving.config import ServeConfig
from medtune.serving.images import ReceivedImages
from medtune.serving.limits import Limits
from medtune.serving.run import open_engine, server_of

ROLES = ("medtune", "transformers")
VOCABULARY = 1024
SIZES = {"vocab_size": VOCABULARY, "embed_dim": 256}
WORDS = ("What", "is", "the", "cell", "size", "shape", "nucleus", "colour", "of", "this", "large", "white", "blood")


def transform_of(folder: Path) -> Component:
    """The transform that both servers use."""
    return Component(_component_="medtune.models.mini.mini_llava_transform", path=str(folder / "tokenizer"))


def build(folder: Path) -> None:
    """Write tokenizer and weights."""
    train_mini_tokenizer([" ".join(WORDS)], VOCABULARY, folder / "tokenizer")
    torch.manual_seed(0)
    model, transform = mini_llava(**SIZES), instantiate(transform_of(folder))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Scales of norms near 1 and wide embeddings let picture and words reach the output, so that answers differ.
            if parameter.ndim < 2 and "norm" in name and not name.endswith("bias"):
                parameter.normal_(1.0, 0.3)
            else:
                parameter.normal_(0.0, 0.7 if "embeddings" in name else 0.1)
    # Tokens that are no text of their own are never the most likely ones, so that every token is sent.
    silent = [token for token in range(VOCABULARY) if not transform.decode([token]).isalnum()]
    with torch.no_grad():
        model.decoder.output.weight[silent] = 0
    save_hf(model.state_dict(), model.family, folder / "hf")


def serve_medtune(folder: Path, slots: int) -> None:
    """Run medtune's server in this process."""
    config = ServeConfig(
        model=Component(_component_="medtune.models.mini.mini_llava", **SIZES),
        transform=transform_of(folder),
        checkpoint=str(folder / "hf"),
        name="mini",
        slots=slots,
        port=0,
        dtype="fp32",
        device="cpu",
    )
    api = open_engine(config)
    api.served.prompts.stop_ids = []
    try:
        server_of(config, api, None).run()
    finally:
        api.close()


class Streamer:
    """What ``generate`` calls with each token; hands tokens to the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, tokens: asyncio.Queue) -> None:
        self.loop, self.tokens, self.begun = loop, tokens, False

    def put(self, value: torch.Tensor) -> None:
        """The prompt comes first."""
        if self.begun:
            self.loop.call_soon_threadsafe(self.tokens.put_nowait, int(value))
        self.begun = True

    def end(self) -> None:
        """Nothing follows."""
        self.loop.call_soon_threadsafe(self.tokens.put_nowait, None)


def serve_transformers(folder: Path) -> None:
    """Run transformers behind the same API in this process, one request after another."""
    from transformers import LlavaForConditionalGeneration

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = LlavaForConditionalGeneration.from_pretrained(folder / "hf", dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    transform, images = instantiate(transform_of(folder)), ReceivedImages(10**7)
    app, one_by_one = FastAPI(), ThreadPoolExecutor(1)

    def generate(call: Any, streamer: Streamer) -> None:
        names = images.take(call.images)
        sample = Sample("request", names, call.messages)
        batch = transform.collate([transform(sample, images.open_images(sample), inference=True)])
        images.release(names)
        with torch.inference_mode():
            model.generate(
                input_ids=batch["tokens"],
                attention_mask=batch["padding"].long(),
                pixel_values=batch["vision"]["images"].flatten(0, 2),
                max_new_tokens=call.max_new_tokens,
                do_sample=False,
                pad_token_id=transform.pad_id,
                streamer=streamer,
            )

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> StreamingResponse:
        call = read_call(await request.body(), Limits(), Defaults())
        tokens: asyncio.Queue = asyncio.Queue()
        one_by_one.submit(generate, call, Streamer(asyncio.get_running_loop(), tokens))
        return StreamingResponse(events(tokens, transform), media_type="text/event-stream")

    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", access_log=False, http="h11"))

    async def run() -> None:
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        print(f"listening on http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1", file=sys.stderr)
        await serving

    asyncio.run(run())


async def events(tokens: asyncio.Queue, transform: Any) -> AsyncIterator[str]:
    """The tokens as a stream of events, with the fields that the client reads."""
    said: list[int] = []
    while (token := await tokens.get()) is not None:
        before = transform.decode(said)
        said.append(token)
        piece = {"choices": [{"index": 0, "delta": {"content": transform.decode(said)[len(before) :]}}]}
        yield f"data: {json.dumps(piece)}\n\n"
    yield "data: [DONE]\n\n"


@contextlib.contextmanager
def running(role: str, folder: Path, slots: int) -> Iterator[tuple[str, int]]:
    """A server as a process: its address and its process id."""
    command = [sys.executable, __file__, "--role", role, "--folder", str(folder), "--slots", str(slots)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if address := re.search(r"listening on (\S+)", line):
                break
        else:
            raise SystemExit(f"the server {role} did not start")
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield address[1], process.pid
    finally:
        process.terminate()
        process.wait(60)


@dataclass(frozen=True)
class Answered:
    """One answer: its text, and the seconds to its first and last token."""

    text: str
    first: float
    last: float


def question(number: int, new_tokens: int) -> bytes:
    """A request's body; every number has a picture and words of its own."""
    rng, buffer = np.random.default_rng(number), io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (96, 96, 3), dtype=np.uint8)).save(buffer, format="PNG")
    url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    text = " ".join(rng.choice(WORDS, size=int(rng.integers(4, 16))))
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
    asked = {"model": "mini", "messages": [{"role": "user", "content": parts}], "stream": True}
    return json.dumps({**asked, "max_tokens": new_tokens, "temperature": 0}).encode()


def ask(address: str, body: bytes) -> Answered:
    """Send a request and read its stream."""
    url = urlsplit(address)
    connection = http.client.HTTPConnection(str(url.hostname), url.port, timeout=600)
    start, first, text = time.perf_counter(), 0.0, ""
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    reply = connection.getresponse()
    if reply.status != 200:
        raise RuntimeError(f"status {reply.status}")
    for line in reply:
        if not line.startswith(b"data: {"):
            continue
        for choice in json.loads(line[6:])["choices"]:
            piece = choice["delta"].get("content") or ""
            first = first or (time.perf_counter() - start if piece else 0.0)
            text += piece
    connection.close()
    return Answered(text, first, time.perf_counter() - start)


def burst(address: str, bodies: list[list[bytes]]) -> tuple[float, list[Answered | None]]:
    """Seconds until all clients are done, and every answer; None for one that was lost."""

    def client(own: list[bytes]) -> list[Answered | None]:
        found: list[Answered | None] = []
        for body in own:
            try:
                found.append(ask(address, body))
            except (OSError, RuntimeError, http.client.HTTPException):
                found.append(None)
        return found

    with ThreadPoolExecutor(len(bodies)) as threads:
        start = time.perf_counter()
        answers = [one for found in threads.map(client, bodies) for one in found]
        return time.perf_counter() - start, answers


def processor_seconds(pid: int) -> float:
    """Processor time of a process so far, all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Ask both servers in turn."""
    numbers = iter(range(10**6))
    bodies = [
        [question(next(numbers), arguments.new_tokens) for _ in range(arguments.requests)]
        for _ in range(arguments.clients)
    ]
    seconds: dict[str, list[float]] = {role: [] for role in ROLES}
    processor: dict[str, list[float]] = {role: [] for role in ROLES}
    answers: dict[str, list[Answered | None]] = {role: [] for role in ROLES}
    with contextlib.ExitStack() as stack, tempfile.TemporaryDirectory() as name:
        build(Path(name))
        places = {role: stack.enter_context(running(role, Path(name), arguments.slots)) for role in ROLES}
        for number in range(arguments.rounds + 1):
            for role, (address, pid) in places.items():
                before = processor_seconds(pid)
                took, found = burst(address, bodies if number else [own[:1] for own in bodies])
                if number:  # the first round warms up
                    seconds[role].append(took)
                    processor[role].append(processor_seconds(pid) - before)
                    answers[role] += found
                    print(f"round {number}: {role} {took:.2f} s", file=sys.stderr)
    return summary(seconds, processor, answers)


def summary(
    seconds: dict[str, list[float]], processor: dict[str, list[float]], answers: dict[str, list[Answered | None]]
) -> dict[str, Any]:
    """Ratios, latencies, and what was lost."""
    ours, theirs = (answers[role] for role in ROLES)
    count = len(ours) // len(seconds["medtune"])
    kept = {role: [one for one in found if one is not None] for role, found in answers.items()}
    same = [a is not None and b is not None and a.text == b.text for a, b in zip(ours, theirs, strict=True)]
    return {
        "unit": "seconds of the wall clock until the last of all clients is answered",
        "speedup": ratio(seconds),
        "speedup_of_processor_time": ratio(processor),
        "answers_per_second": {role: count / statistics.median(took) for role, took in seconds.items()},
        "first_token_seconds": {role: spread([one.first for one in found]) for role, found in kept.items()},
        "answer_seconds": {role: spread([one.last for one in found]) for role, found in kept.items()},
        "lost": {role: sum(one is None for one in found) for role, found in answers.items()},
        "same_answers": sum(same) / len(same),
        "different_answers": len({one.text for one in kept["medtune"]}),
        "requests_per_round": count,
        "all_rounds": {"seconds": seconds, "processor_seconds": processor},
    }


def ratio(times: dict[str, list[float]]) -> float:
    """How many times faster medtune is: the median over the rounds."""
    return statistics.median(b / a for a, b in zip(times["medtune"], times["transformers"], strict=True))


def spread(values: list[float]) -> dict[str, float]:
    """Median and 95th percentile."""
    return {"p50": float(np.percentile(values, 50)), "p95": float(np.percentile(values, 95))}


def main() -> None:
    """Measure, print and write the result; or, with a role, be one of the servers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--requests", type=int, default=2, help="of each client, in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--slots", type=int, default=50, help="requests that medtune answers at the same time")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "serve.json")
    parser.add_argument("--role", choices=ROLES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.role == "medtune":
        return serve_medtune(arguments.folder, arguments.slots)
    if arguments.role == "transformers":
        return serve_transformers(arguments.folder)
    hidden = ("output", "role", "folder")
    result = {
        **measure(arguments),
        "settings": {key: str(value) for key, value in vars(arguments).items() if key not in hidden},
        "command": " ".join(["python", "benchmark/serve.py", *sys.argv[1:]]),
        "commit": commit(),
        "versions": versions(),
        "machine_load": {"at": "the end, 1, 5 and 15 minutes", "processes": os.getloadavg()},
        "hardware": hardware(),
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    told = ("speedup", "speedup_of_processor_time", "answers_per_second", "first_token_seconds", "lost", "same_answers")
    print(json.dumps({key: result[key] for key in told}, indent=2))


if __name__ == "__main__":
    main()
