"""InstFree in miniature, from data to a scored report: ``make demo``, or ``python -m medtune.cli.demo``.

Four models answer the same questions about white blood cells: the untuned mini base, FT (one written instruction),
InstFree, and InstFree with response shuffling. It runs the sweep of ``configs/sweep/mini_wbcatt.yaml`` on the real
WBCAtt if it is found, otherwise on cells that medtune renders itself.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

from medtune.config import data_root, load_config
from medtune.errors import MedtuneError
from medtune.sweep.config import SweepConfig
from medtune.sweep.run import run_recipe, run_sweep

TRAIN, TEST_CELLS, PER_ATTRIBUTE = 1200, 40, 30
REAL = "Real white blood cells of WBCAtt (CC BY 4.0)."
RENDERED = "Synthetic cells rendered by medtune: MEDTUNE_DATA does not name a folder that holds WBCAtt."


def prepare(folder: Path) -> list[str]:
    """Use the real WBCAtt if it exists, else render a synthetic set.

    Returns:
        Overrides of the sweep's config that set the data and name them in the report.
    """
    root, prepared = data_root(), folder / "prepared"
    images = (root or Path()) / "wbcatt" / "wbcatt_128.tar"
    where = [f"output_dir={folder}", f"prepared_dir={prepared}"]
    if root is not None and images.is_file():
        limits = [f"data.limit_train={TRAIN}", f"data.limit_questions_per_attribute={PER_ATTRIBUTE}"]
        source = [f"data.annotations={images.parent / 'annotations'}", f"image_root={images}", f"output_dir={prepared}"]
        run_recipe(folder, "prepare", ["prepare/wbcatt", *limits, *source])
        return [*where, f"image_root={images}", f"note='{REAL}'"]
    from medtune.datasets.cells.prepared import write_rendered_set

    write_rendered_set(prepared, TRAIN, TEST_CELLS, seed=100)
    return [*where, f"image_root={prepared / 'images'}", "center_crop=1.0", f"note='{RENDERED}'"]


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m medtune.cli.demo", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output-dir", type=Path, default=Path("runs/demo"), help="folder of the runs and the report")
    folder: Path = parser.parse_args(arguments).output_dir
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    started = time.perf_counter()

    def say(message: str) -> None:
        print(f"[{time.perf_counter() - started:4.0f} s] {message}", flush=True)

    try:
        folder.mkdir(parents=True, exist_ok=True)
        config = load_config("sweep/mini_wbcatt", SweepConfig, prepare(folder))
        say(config.note)
        say(f"tuning, asking and scoring {len(config.variants)} models, two at a time; logs in {folder / 'logs'}")
        report = run_sweep(config, say)
    except MedtuneError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    say("done")
    from medtune.reporting.summary import summary_table

    combined = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    print(f"\n{summary_table(combined['runs'])}\n\nreport: {report.resolve()}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
