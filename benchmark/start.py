"""How long the check of a data set takes before the first step: at first, with several processes, and remembered.

    python benchmark/start.py [--rows 377110] [--fresh-rows 20000] [--rounds 3]

Rows are made up, as many as MIMIC-CXR has images, each a report of some 600 bytes with an image of its own; the images
are hard links to a few JPEG files (360 x 363 pixels), so that they take little room. Timed is all that a run's data
side does before the first step: opening the file, the check, the plan of batches. The first starts take
``--fresh-rows`` of the rows, the remembered one takes all; what it remembers is filled in with the lengths of the rows
that were read, so that not all images need to be read for it (``--whole`` reads them). Then one image is replaced; the
start that finds it is timed too.
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
from medtune.data.preflight_record import SUFFIX, Table, file_stamps
from medtune.evaluation.provenance import stamp
from medtune.objectives import InstFree
from medtune.training.checking import check_record
from medtune.training.config import TrainConfig
from medtune.training.data import BatchLoader
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


def settings(folder: Path, file: str, workers: int, remembered: bool) -> TrainConfig:
    """The run whose start is timed."""
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
    return build(TrainConfig, values, "benchmark")


def start(folder: Path, file: str, workers: int, remembered: bool) -> tuple[float, BatchLoader]:
    """Seconds until batches are planned."""
    config = settings(folder, file, workers, remembered)
    method, transform = InstFree(mode="text", shuffle_separator="."), instantiate(config.transform)
    began = time.perf_counter()
    method.bind(None, transform, 0)
    feed = BatchLoader(config.dataset, method, transform, config, Runtime.start("cpu"), method.stages((), 1, None))
    return time.perf_counter() - began, feed


def remember(folder: Path, like: BatchLoader) -> None:
    """Write the record of all rows, each as long as one of the rows that were read."""
    config = settings(folder, "rows.jsonl", 2, remembered=True)
    source = instantiate(config.dataset)
    record = check_record(config, source, InstFree(mode="text").stages((), 1, None))
    assert record is not None
    names = [os.fsencode(path) for index in range(len(source)) for path in source.image_files(source[index])]
    found = like.checked
    columns = (found.lengths, found.tiles, found.longest, found.most_tiles, found.supervised, found.labelled)
    numbers = np.stack([np.ones_like(found.lengths), *columns], axis=1)
    numbers = np.resize(numbers, (len(source), numbers.shape[1]))
    record.save(Table.of(numbers, {}, np.ones(len(source), dtype=np.int32), names, file_stamps(names)))


def measure(folder: Path, rows: int, fresh_rows: int, rounds: int, whole: bool) -> dict[str, Any]:
    """Time every kind of start."""
    write_data(folder, rows)
    first_rows(folder, fresh_rows)
    fresh: dict[str, list[float]] = {}
    for _ in range(rounds):
        for workers in (0, 2):
            seconds, feed = start(folder, "few.jsonl", workers, remembered=False)
            fresh.setdefault(f"workers_{workers}", []).append(seconds)
    read = {f"fresh_seconds_{rows}": start(folder, "rows.jsonl", 2, remembered=True)[0]} if whole else {}
    if not whole:
        remember(folder, feed)
    (record,) = (folder / "remembered").glob(f"*{SUFFIX}")
    again = [start(folder, "rows.jsonl", 2, remembered=True)[0] for _ in range(rounds)]
    assert len(list((folder / "remembered").glob("*"))) == 1, "the code has changed meanwhile"
    replaced = folder / "images" / "p07" / "s00000007.jpg"
    replaced.unlink()
    Image.new("RGB", (640, 360)).save(replaced)
    changed, _ = start(folder, "rows.jsonl", 2, remembered=True)
    return {
        "rows": rows,
        "fresh_rows": fresh_rows,
        "rows_per_second": {
            **{name: fresh_rows / statistics.median(seconds) for name, seconds in fresh.items()},
            "remembered": rows / statistics.median(again),
        },
        **read,
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
    parser.add_argument("--whole", action="store_true", help="read all rows before the remembered start")
    parser.add_argument("--folder", type=Path, help="where the rows are made up; a temporary folder if absent")
    parser.add_argument("--out", type=Path, default=Path("benchmark/results/start.json"))
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        fresh_rows = min(options.fresh_rows, options.rows)
        result = measure(folder, options.rows, fresh_rows, options.rounds, options.whole)
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
