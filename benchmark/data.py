"""Images per second of the input pipeline beside plain Pillow decoding, and memory against the number of samples.

    python benchmark/data.py [--images 600] [--rounds 3]

Pictures of 360 x 363 pixels (WBCAtt's size) are written as JPEG. Timed in turn: Pillow decoding and resizing to 64 x 64
in this process, and the training pipeline (checks, decoding, tokens, batches of 16) with 0, 1 and 2 workers; their
start-up counts. Memory is the growth of this process while a source of N rows is opened and its batches are planned.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from medtune.config import PACKAGE
from medtune.data.batching import BatchPlan, split_step
from medtune.data.items import SampleItems
from medtune.data.training_set import TrainingSet, epoch_loader
from medtune.datasets import jsonl_dataset
from medtune.evaluation.provenance import stamp
from medtune.models.mini import mini_transform
from medtune.objectives.instfree import ReportPrompt

BATCH = 16
ROWS = (1_000, 100_000, 400_000)
REPORT = "big cell size, round cell shape, low nuclear cytoplasmic ratio, granularity, Neutrophil"


def write_images(folder: Path, count: int) -> None:
    """Smooth noise as JPEG, which costs what a photograph costs to decode, and its rows."""
    rng = np.random.default_rng(0)
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as rows:
        for number in range(count):
            coarse = Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8))
            coarse.resize((360, 363), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=90)
            rows.write(row(number, [f"{number}.jpg"]))


def row(number: int, images: list[str]) -> str:
    """One line of a report file."""
    turns = [{"role": "assistant", "content": REPORT}]
    return json.dumps({"id": str(number), "images": images, "messages": turns, "meta": {}}) + "\n"


def pillow(folder: Path, count: int) -> None:
    """Decode and resize, nothing else."""
    for number in range(count):
        with Image.open(folder / f"{number}.jpg") as image:
            np.asarray(image.convert("RGB").resize((64, 64), Image.Resampling.BILINEAR))


def pipeline(folder: Path, count: int, workers: int) -> None:
    """One epoch of training batches."""
    transform = mini_transform(PACKAGE / "assets" / "mini_tokenizer")
    source = jsonl_dataset(str(folder / "rows.jsonl"), str(folder))
    dataset = TrainingSet(source, SampleItems(ReportPrompt(("Describe this image.",), ",")), transform, seed=0)
    steps = [split_step(step, 1, 0, 1, BATCH) for step in BatchPlan([50] * count, BATCH, seed=0).steps(0)]
    for _ in epoch_loader(dataset, steps, 0, workers):
        pass


def rate(work: Callable[[], None], count: int) -> float:
    """Images per second."""
    started = time.perf_counter()
    work()
    return count / (time.perf_counter() - started)


def memory_growth(rows: int) -> float:
    """MiB that opening ``rows`` rows and planning an epoch adds to a fresh process."""
    command = [sys.executable, __file__, "--measure-rows", str(rows)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def measure_rows(count: int) -> None:
    """The child of :func:`memory_growth`; the first, small source pays for imports and buffers."""
    with tempfile.TemporaryDirectory() as folder:
        peaks = []
        for rows in (10, count):
            path = Path(folder) / f"{rows}.jsonl"
            with path.open("w", encoding="utf-8") as file:
                file.writelines(row(number, []) for number in range(rows))
            source = jsonl_dataset(str(path))
            BatchPlan(np.full(len(source), 50), BATCH, seed=0).steps(0)
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        print(peaks[1] - peaks[0])


def main() -> int:
    """Measure and write benchmark/results/data.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmark/results/data.json"))
    parser.add_argument("--measure-rows", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure_rows:
        measure_rows(options.measure_rows)
        return 0
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder, count = Path(name), options.images
        write_images(folder, count)
        work: dict[str, Callable[[], None]] = {"pillow": lambda: pillow(folder, count)}
        for workers in (0, 1, 2):
            work[f"workers_{workers}"] = lambda workers=workers: pipeline(folder, count, workers)  # type: ignore[misc]
        for _ in range(options.rounds):
            for key, one in work.items():
                rates.setdefault(key, []).append(rate(one, count))
    medians = {key: statistics.median(values) for key, values in rates.items()}
    result = {
        **stamp(sys.argv[0], sys.argv[1:]),
        "images_per_second": medians,
        "ratio_to_pillow": {key: value / medians["pillow"] for key, value in medians.items() if key != "pillow"},
        "memory_mib_by_rows": {str(rows): memory_growth(rows) for rows in ROWS},
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(
        json.dumps(
            {key: result[key] for key in ("images_per_second", "ratio_to_pillow", "memory_mib_by_rows")}, indent=1
        )
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
