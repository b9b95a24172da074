"""How long the check of a data set takes before the first step: at first, with several processes, and remembered.

    python benchmark/start.py [--rows 377110] [--fresh-rows 20000] [--rounds 3]

Rows are made up, as many as MIMIC-CXR has images, each a report of some 600 bytes with an image of its own; the images
are hard links to a few JPEG files (360 x 363 pixels), so that they take little room. Timed is all that a run's data
side does before the first step: opening the file, the check, the plan of batches. The first starts take
``--fresh-rows`` of the rows, the remembered one takes all. Then one image is replaced; the start that finds it is timed
too.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from medtune.config import PACKAGE, build, instantiate
from medtune.data.preflight_record import SUFFIX
from medtune.evaluation.provenance import stamp
from medtune.objectives import InstFree
from medtune.training.config import TrainConfig
from medtune.training.data import DataFeed
from medtune.training.runtime import Runtime

ROWS = 377_110
FOLDERS = 64
LINKS = 50_000  # of one file; ext4 allows 65,000
SENTENCES = (
    "The heart size is within normal limits.",
    "There is no focal consolidation, effusion or pneumothorax.",
    "A right internal jugular line ends in the superior vena cava.",
    "Mild interstitial edema has improved since the last study.",
    "The mediastinal and hilar contours are unremarkable.",
    "Low lung volumes with bibasilar atelectasis.",
)


def write_data(folder: Path, rows: int) -> None:
    """Reports and their images."""
    rng = random.Random(0)
    pixels = np.random.default_rng(0)
    for number in range(FOLDERS):
        (folder / "images" / f"p{number:02d}").mkdir(parents=True)
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for number in range(rows):
            if number % LINKS == 0:
                first = folder / "images" / f"first_{number}.jpg"
                coarse = Image.fromarray(pixels.integers(0, 256, (24, 24, 3), dtype=np.uint8))
                coarse.resize((360, 363), Image.Resampling.BICUBIC).save(first, quality=90)
            name = f"p{number % FOLDERS:02d}/s{number:08d}.jpg"
            os.link(first, folder / "images" / name)
            turns = [{"role": "assistant", "content": " ".join(rng.choices(SENTENCES, k=9))}]
            file.write(json.dumps({"id": str(number), "images": [name], "messages": turns, "meta": {}}) + "\n")


def first_rows(folder: Path, rows: int) -> None:
    """A file of the first rows alone."""
    with (folder / "rows.jsonl").open(encoding="utf-8") as whole, (folder / "few.jsonl").open("w") as few:
        few.writelines(line for line, _ in zip(whole, range(rows), strict=False))


def start(folder: Path, file: str, workers: int, remembered: bool) -> float:
    """Seconds until batches are planned."""
    asset = str(PACKAGE / "assets" / "mini_tokenizer")
    data = {"source": str(folder / file), "image_root": str(folder / "images")}
    values: dict[str, Any] = {
        "output_dir": str(folder / "run"),
        "model": {"_component_": "medtune.models.mini.mini_vlm"},
        "transform": {"_component_": "medtune.models.mini.mini_transform", "path": asset},
        "dataset": {"_component_": "medtune.datasets.jsonl_dataset", **data},
        "objective": {"_component_": "medtune.objectives.InstFree", "mode": "text", "shuffle_separator": "."},
        "num_workers": workers,
        "preflight_cache": str(folder / "remembered") if remembered else None,
        "device": "cpu",
    }
    config = build(TrainConfig, values, "benchmark")
    method, transform = InstFree(mode="text", shuffle_separator="."), instantiate(config.transform)
    began = time.perf_counter()
    method.bind(None, transform, 0)
    feed = DataFeed(config.dataset, method, transform, config, Runtime.start("cpu"), method.stages((), 1, None))
    seconds = time.perf_counter() - began
    assert feed.steps_per_epoch > 0
    return seconds


def measure(folder: Path, rows: int, fresh_rows: int, rounds: int) -> dict[str, Any]:
    """Time every kind of start."""
    write_data(folder, rows)
    first_rows(folder, fresh_rows)
    fresh: dict[str, list[float]] = {}
    for _ in range(rounds):
        for workers in (0, 2):
            fresh.setdefault(f"workers_{workers}", []).append(start(folder, "few.jsonl", workers, remembered=False))
    whole = start(folder, "rows.jsonl", 2, remembered=True)
    (record,) = (folder / "remembered").glob(f"*{SUFFIX}")
    again = [start(folder, "rows.jsonl", 2, remembered=True) for _ in range(rounds)]
    replaced = folder / "images" / "p07" / "s00000007.jpg"
    replaced.unlink()
    Image.new("RGB", (640, 360)).save(replaced)
    changed = start(folder, "rows.jsonl", 2, remembered=True)
    return {
        "rows": rows,
        "fresh_rows": fresh_rows,
        "rows_per_second": {
            **{name: fresh_rows / statistics.median(seconds) for name, seconds in fresh.items()},
            "remembered": rows / statistics.median(again),
        },
        f"fresh_seconds_{rows}": whole,
        f"remembered_seconds_{rows}": statistics.median(again),
        f"one_changed_seconds_{rows}": changed,
        "record_bytes": record.stat().st_size,
    }


def main() -> int:
    """Measure and write benchmark/results/start.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--fresh-rows", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the rows are made up; a temporary folder if absent")
    parser.add_argument("--out", type=Path, default=Path("benchmark/results/start.json"))
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        result = measure(folder, options.rows, min(options.fresh_rows, options.rows), options.rounds)
    finally:
        shutil.rmtree(folder)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(
        json.dumps({**stamp(sys.argv[0], sys.argv[1:]), **result}, indent=1) + "\n", encoding="utf-8"
    )
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
