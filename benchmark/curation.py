"""What curation costs beside what one would write without it: requests, features, a selection, and the page.

    OMP_NUM_THREADS=1 python benchmark/curation.py [--only requests features ...] [--out FILE]

- ``requests``: figures per second of `curate` with 64 requests in flight, its cache, its log and resuming on, beside a
  plain loop of asyncio and openai that keeps nothing. Both ask a server on loopback that answers after a fixed delay.
- ``features``: image and text features of 2,000 figures by a CLIP model of open_clip (random weights), kept on the disk
  as `curate` keeps them, beside open_clip's own loop in the same batches, a part of the figures after the other.
- ``selection``: the best half of a million rows, uniformly per group, with the manifest: seconds and peak memory.
- ``annotation``: 50 people at `medtune annotate` at once, each of whom looks at the image and chooses; the page is
  killed without warning at the end, and what it has confirmed is looked for in its store.

What is compared runs in turn, round after round; a ratio is the median of the rounds' own ratios. Each part is written
to the result as soon as it is measured; the same command does the parts that are missing, ``--fresh`` does them anew.
"""

import argparse
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent))
import curation_loads as loads

from medtune.curation.choosing import _features
from medtune.curation.demonstrations import Demonstrations
from medtune.curation.features import ClipFeatures
from medtune.curation.figures import Figure
from medtune.curation.prompts import Requests, Writing
from medtune.evaluation.provenance import stamp

WORDS = (
    "axial",
    "scan",
    "shows",
    "a",
    "lesion",
    "of",
    "the",
    "left",
    "lobe",
    "with",
    "sharp",
    "borders",
    "and",
    "oedema",
)


def write_figures(folder: Path, count: int, size: int) -> list[Figure]:
    """Write ``count`` figures with different captions and noisy images of ``size`` pixels a side."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    figures = []
    for number in range(count):
        noise = rng.integers(0, 256, (size // 8, size // 8, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC).save(folder / f"images/{number}.png")
        caption = f"Figure {number}: " + " ".join(rng.choice(WORDS, 24))
        figures.append(Figure(f"f{number}", f"{number}.png", ("ct_scan",), caption, (f"See figure {number}.",)))
    rows = [
        {"id": one.id, "image": one.image, "caption": one.caption, "mentions": list(one.mentions)} for one in figures
    ]
    (folder / "figures.json").write_text(json.dumps(rows))
    return figures


def quietly(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of the wall clock and of this process that a silent piece of work takes."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        begun, used = time.perf_counter(), time.process_time()
        work()
        return time.perf_counter() - begun, time.process_time() - used


def ratio(seconds: dict[str, list[float]], ours: str = "medtune", theirs: str = "plain") -> float:
    """How many times as fast medtune is: the median of the rounds' own ratios."""
    return statistics.median(b / a for a, b in zip(seconds[ours], seconds[theirs], strict=True))


def requests(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Figures per second of the client, beside a plain loop."""
    from medtune.recipes import curate

    figures = write_figures(folder, arguments.requests, arguments.side)
    texts = Requests(Writing(), Demonstrations((), 0))
    plain = [
        (
            folder / "images" / figure.image,
            texts.of(figure, lambda: Image.new("RGB", (1, 1))).messages[0]["content"][-1],
        )
        for figure in figures
    ]
    sent = [(path, str(part["text"])) for path, part in plain]
    seconds: dict[str, list[float]] = {"medtune": [], "plain": []}
    processor: dict[str, list[float]] = {"medtune": [], "plain": []}
    with loads.fixed_delay(arguments.delay) as url:
        for number in range(arguments.rounds):
            out = folder / f"run{number}"
            command = [
                "--config", "curate/openai_server", f"figures={folder / 'figures.json'}", f"output_dir={out}",
                f"image_root={folder / 'images'}", "demonstrations=null", f"server.base_url={url}",
                f"server.model={loads.MODEL}", f"server.concurrency={arguments.in_flight}",
            ]  # fmt: skip
            work: dict[str, Callable[[], Any]] = {
                "medtune": partial(curate.main, command),
                "plain": lambda: loads.plain_loop(url, sent, arguments.in_flight, 4096),
            }
            for role in sorted(work, reverse=bool(number % 2)):
                took, used = quietly(work[role])
                seconds[role].append(took)
                processor[role].append(used)
            kept = sum(1 for _ in (out / "conversations.jsonl").open())
            assert kept == len(figures), (kept, len(figures))
    return {
        "throughput_ratio": ratio(seconds),
        "requests_per_second": {role: len(figures) / statistics.median(took) for role, took in seconds.items()},
        "most_requests_per_second": arguments.in_flight / arguments.delay,
        "processor_ms_per_request": {
            role: 1000 * statistics.median(used) / len(figures) for role, used in processor.items()
        },
        "all_rounds": {"seconds": seconds, "processor_seconds": processor},
    }


def features(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Seconds for the features of figures, beside open_clip's own loop."""
    import open_clip
    from safetensors.torch import save_file

    figures = write_figures(folder, arguments.figures, 256)
    torch.manual_seed(0)
    network, _, transform = open_clip.create_model_and_transforms(arguments.clip)
    save_file(network.state_dict(), folder / "clip.safetensors")
    encoder = ClipFeatures(arguments.clip, str(folder / "clip.safetensors"))
    encoder.of(figures[:1], [Image.open(folder / "images/0.png").convert("RGB")], [0])  # opened before the first round
    network, tokenizer, size = encoder._opened[0], open_clip.get_tokenizer(arguments.clip), arguments.batch
    tables: dict[str, Any] = {}

    def plain(part: list[Figure]) -> None:
        found = []
        with torch.no_grad():
            for start in range(0, len(part), size):
                batch = part[start : start + size]
                shown = [transform(Image.open(folder / "images" / one.image).convert("RGB")) for one in batch]
                seen = network.encode_image(torch.stack(shown), normalize=True)
                read = network.encode_text(tokenizer([one.text for one in batch]), normalize=True)
                found.append(torch.cat((read, seen), dim=-1))
        tables["plain"] = torch.cat(found).numpy()

    def open_image(figure: Figure) -> Image.Image:
        return Image.open(folder / "images" / figure.image).convert("RGB")

    def ours(out: Path, part: list[Figure]) -> None:
        kept, tables["medtune"] = _features(out, part, "source", size, encoder, open_image, lambda *_: None)
        assert kept == part

    seconds: dict[str, list[float]] = {"medtune": [], "plain": []}
    step = -(-len(figures) // arguments.feature_rounds)
    for number, start in enumerate(range(0, len(figures), step)):
        part, out = figures[start : start + step], folder / f"features{number}"
        out.mkdir()
        work: dict[str, Callable[[], None]] = {"medtune": partial(ours, out, part), "plain": partial(plain, part)}
        for role in sorted(work, reverse=bool(number % 2)):
            seconds[role].append(quietly(work[role])[0])
        assert np.allclose(tables["medtune"], tables["plain"], atol=1e-5), number
    return {
        "feature_ratio": ratio(seconds),
        "figures_per_second": {role: len(figures) / sum(took) for role, took in seconds.items()},
        "all_rounds": {"seconds": seconds},
    }


def selection(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Seconds and peak memory of a selection by scores, uniformly from groups, in a process of its own."""
    rng, count = np.random.default_rng(0), arguments.rows
    scores, groups = rng.normal(size=count), rng.integers(0, arguments.groups, count)
    turns = [
        {"from": "human", "value": "<image>\nWhat kind of image is this, and what does it show?"},
        {"from": "gpt", "value": "An axial CT scan. It shows a lesion with sharp borders in the left lobe."},
    ] * 4
    rest = json.dumps({"caption": " ".join(WORDS), "mentions": ["See the figure."], "conversations": turns})[1:]
    with (folder / "rows.jsonl").open("w") as rows, (folder / "scores.csv").open("w") as table:
        table.write("id,score\n")
        for number in range(count):
            rows.write(f'{{"id": "c{number}", "image": "{number % 60_000}.png", {rest}\n')
            table.write(f"c{number},{scores[number]:.6f}\n")
    with (folder / "groups.csv").open("w") as file:
        file.write("id,group\n" + "".join(f"c{number},{group}\n" for number, group in enumerate(groups)))
    words = [
        "--config", "selection/scores", f"data={folder / 'rows.jsonl'}", f"scores={folder / 'scores.csv'}",
        f"clusters.table={folder / 'groups.csv'}", f"output_dir={folder / 'out'}",
    ]  # fmt: skip
    script = "import sys; from medtune.recipes.selection import main; raise SystemExit(main(sys.argv[1:]))"
    begun = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-c", script, *words], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    took = time.perf_counter() - begun
    assert status == 0
    kept = sum(1 for _ in (folder / "out/selected.jsonl").open())
    assert kept == count // 2, kept
    return {
        "selection_seconds": took,
        "processor_seconds": used.ru_utime + used.ru_stime,
        "peak_memory_bytes": used.ru_maxrss * 1024,
        "rows": count,
        "taken": kept,
        "bytes_of_rows": (folder / "rows.jsonl").stat().st_size,
    }


def annotation(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Latencies of the page at many annotators, and what it has kept after it was killed."""
    from medtune.annotate.store import Store

    write_figures(folder, arguments.questions, 512)
    rows = [
        {
            "id": f"q{number}",
            "images": [f"{number}.png"],
            "messages": [{"role": "user", "content": f"<image>What is seen in part {number}?"}],
            "answers": [f"A lesion of {number} mm.", f"No lesion, part {number}."],
            "meta": {"caption": f"Caption {number}"},
        }
        for number in range(arguments.questions)
    ]
    (folder / "candidates.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    names = [f"reader {number}" for number in range(arguments.annotators)]
    with loads.annotation_page(folder, names) as (address, tokens, kill):
        people = [loads.Annotator(address, tokens[name], arguments.think, n) for n, name in enumerate(names)]
        barrier = threading.Barrier(len(people))
        threads = [threading.Thread(target=one.work, args=(barrier,)) for one in people]
        begun = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        took = time.perf_counter() - begun
        kill()
    with Store(folder / "store.sqlite") as store:
        stored = sum(1 for _ in store.choices())
    every = np.array([second for one in people for second in one.seconds])
    confirmed = sum(one.confirmed for one in people)
    return {
        "p95_ms": float(1000 * np.percentile(every, 95)),
        "p50_ms": float(1000 * np.percentile(every, 50)),
        "max_ms": float(1000 * every.max()),
        "requests": len(every),
        "requests_per_second": len(every) / took,
        "confirmed": confirmed,
        "lost": len(names) * len(rows) - stored + abs(confirmed - stored),
    }


PARTS: dict[str, Callable[[argparse.Namespace, Path], dict[str, Any]]] = {
    "requests": requests,
    "features": features,
    "selection": selection,
    "annotation": annotation,
}
OPTIONS = {
    "requests": ("requests", "in_flight", "delay", "side", "rounds"),
    "features": ("figures", "clip", "batch", "feature_rounds"),
    "selection": ("rows", "groups"),
    "annotation": ("annotators", "questions", "think"),
}
"""What a part depends on."""


def measured(kept: Any, part: str, settings: dict[str, Any]) -> bool:
    """Whether a result holds a part that was measured with these settings."""
    return isinstance(kept, dict) and kept.get(part, {}).get("settings") == settings


def measured_with(words: Sequence[str]) -> list[str]:
    """The options of a command that decide what is measured: not which parts are, nor whether anew."""
    kept: list[str] = []
    skips = False
    for word in words:
        skips = word == "--only" or (skips and not word.startswith("--"))
        if not skips and word != "--fresh":
            kept.append(word)
    return kept


def main(words: Sequence[str] | None = None) -> None:
    """Measure the parts that are missing; write each at once."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--fresh", action="store_true", help="measure the parts anew that are there")
    parser.add_argument("--requests", type=int, default=640)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--delay", type=float, default=2.0, help="seconds until the server answers")
    parser.add_argument("--side", type=int, default=224, help="pixels of an image's side in a request")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--figures", type=int, default=2000)
    parser.add_argument("--clip", default="ViT-S-32-alt")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--feature-rounds", type=int, default=8, help="parts of the figures")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--groups", type=int, default=60)
    parser.add_argument("--annotators", type=int, default=50)
    parser.add_argument("--questions", type=int, default=40)
    parser.add_argument("--think", type=float, default=1.0, help="mean seconds between two choices of a person")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "curation.json")
    arguments = parser.parse_args(words)
    torch.set_num_threads(1)
    result = json.loads(arguments.out.read_text()) if arguments.out.is_file() else {}
    for part in arguments.only:
        settings = {name: getattr(arguments, name) for name in OPTIONS[part]}
        if measured(result, part, settings) and not arguments.fresh:
            print(f"{part}: measured already")
            continue
        with tempfile.TemporaryDirectory() as folder:
            found = PARTS[part](arguments, Path(folder))
        load = {"at": "the end, 1, 5 and 15 minutes", "processes": os.getloadavg()}
        told = stamp("benchmark/curation.py", measured_with(sys.argv[1:] if words is None else words))
        result[part] = {**found, "settings": settings, "machine_load": load, "commit": told["commit"]}
        result.update(told)
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        aside = arguments.out.with_suffix(".tmp")
        aside.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        aside.replace(arguments.out)
        print(json.dumps({part: {key: value for key, value in found.items() if key != "all_rounds"}}, indent=1))


if __name__ == "__main__":
    main()
