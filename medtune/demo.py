"""InstFree in miniature, from data to a scored report: ``make demo``, or ``python -m medtune.demo``.

Four models answer the same questions about white blood cells: the untuned mini base, FT (one written instruction),
InstFree, and InstFree with response shuffling. Every step is a recipe that can be run by itself; the commands are
written to ``commands.txt``. Two steps run side by side, each on one thread.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from medtune.config import data_root
from medtune.errors import MedtuneError

TRAIN, TEST_CELLS, PER_ATTRIBUTE = 1200, 40, 30
BASE = ("base", "untuned base", None)
TUNED = (
    ("instfree", "InstFree", []),
    ("instfree_rs", "InstFree w/ RS", ["objective.shuffle_separator=','"]),
    ("ft", "FT", ["objective.mode=text"]),
)
VARIANTS = (*TUNED, BASE)
REPORT_ORDER = ("base", "ft", "instfree", "instfree_rs")
CROP = 0.5625


@dataclass(frozen=True)
class DemoData:
    """Where the demo's data lie: prepared JSON lines, the images, what to call them, how much of each image to keep."""

    prepared: Path
    image_root: Path
    note: str
    crop: float

    def arguments(self, node: str, file: str) -> list[str]:
        """Overrides that point a config's dataset node at a prepared file."""
        source = [f"{node}.source={self.prepared / file}", f"{node}.image_root={self.image_root}"]
        return [*source, f"{node}.center_crop={self.crop}"]


class Commands:
    """Runs recipes in this process and notes the command that does the same from a shell."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, name: str, arguments: list[str]) -> None:
        """Run one recipe with ``--config arguments[0]`` and overrides.

        Raises:
            MedtuneError: If it fails; its own message stands in the step's log.
        """
        from importlib import import_module

        line = " ".join(["tune run", f"medtune/recipes/{name}.py --config", *map(_quoted, arguments)])
        with (self.folder / "commands.txt").open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(f"$ {line}", flush=True)
        status = import_module(f"medtune.recipes.{name}").main(["--config", *arguments])
        if status:
            raise MedtuneError(f"the {name} step ended with status {status}: {line}")


def _quoted(argument: str) -> str:
    return f'"{argument}"' if set(argument) & set(" ,[]'") else argument


def prepare(folder: Path, commands: Commands) -> DemoData:
    """Take the real WBCAtt where it is, else render a synthetic set; say which."""
    real = data_root() / "wbcatt"
    images = real / "wbcatt_128.tar"
    prepared = folder / "prepared"
    if images.is_file():
        limits = [f"data.limit_train={TRAIN}", f"data.limit_questions_per_attribute={PER_ATTRIBUTE}"]
        commands.run(
            "prepare",
            ["prepare/wbcatt", f"data.annotations={real / 'annotations'}", *limits, f"output_dir={prepared}"]
            + [f"image_root={images}"],
        )
        return DemoData(prepared, images, "Real white blood cells of WBCAtt (CC BY 4.0).", CROP)
    from medtune.datasets.cells.prepared import write_rendered_set

    write_rendered_set(prepared, TRAIN, TEST_CELLS, seed=100)
    return DemoData(
        prepared,
        prepared / "images",
        "Synthetic cells rendered by medtune, because WBCAtt was found neither in MEDTUNE_DATA nor in ../shared/data.",
        1.0,
    )


def chain(name: str, title: str, changes: list[str] | None, data: DemoData, folder: Path) -> float:
    """Tune (unless it is the base), predict and evaluate one model; returns the seconds it took."""
    started = time.perf_counter()
    run = folder / name
    run.mkdir(parents=True, exist_ok=True)
    commands = Commands(folder)
    with (folder / "logs" / f"{name}.log").open("a", encoding="utf-8") as log, _output_to(log):
        weights = []
        if changes is not None:
            train = ["instfree/mini_wbcatt", *data.arguments("dataset", "train.jsonl"), f"output_dir={run}", *changes]
            commands.run("instfree", train)
            weights = [f"checkpoint={run / 'weights'}"]
        questions = data.arguments("questions", "test.jsonl")
        commands.run("predict", ["predict/mini", *questions, *weights, f"output_dir={run}"])
        files = [f"predictions={run / 'predictions.jsonl'}", f"prepared_dir={data.prepared}", f"output={run}"]
        commands.run("evaluate", ["evaluate/default", *files, f"name={title}"])
    return time.perf_counter() - started


def _output_to(log: TextIO) -> contextlib.AbstractContextManager[object]:
    stack = contextlib.ExitStack()
    stack.enter_context(contextlib.redirect_stdout(log))
    stack.enter_context(contextlib.redirect_stderr(log))
    return stack


def run_chains(data: DemoData, folder: Path, say: Callable[[str], None]) -> None:
    """All models, two at a time, each in a process of its own.

    Raises:
        MedtuneError: Naming the model that failed and its log.
    """
    # Imported before forking, so that each model's process starts at once.
    import medtune.recipes.evaluate
    import medtune.recipes.instfree
    import medtune.recipes.predict  # noqa: F401

    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        waiting: dict[Future[float], tuple[str, str]] = {}
        for name, title, changes in VARIANTS:
            waiting[pool.submit(chain, name, title, changes, data, folder)] = (name, title)
        for future in as_completed(waiting):
            name, title = waiting[future]
            if future.exception() is not None:
                log = folder / "logs" / f"{name}.log"
                raise MedtuneError(f"{title} failed: {future.exception()}; its log is {log}") from future.exception()
            say(f"{title}: done in {future.result():.0f} s")


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m medtune.demo", description=__doc__.splitlines()[0])
    parser.add_argument("--output-dir", type=Path, default=Path("runs/demo"), help="folder of the runs and the report")
    folder = parser.parse_args(arguments).output_dir
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    started = time.perf_counter()

    def say(message: str) -> None:
        print(f"[{time.perf_counter() - started:5.0f} s] {message}", flush=True)

    try:
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        (folder / "commands.txt").unlink(missing_ok=True)
        data = prepare(folder, Commands(folder))
        say(data.note)
        say(f"tuning, asking and scoring {len(VARIANTS)} models, two at a time; logs in {folder / 'logs'}")
        run_chains(data, folder, say)
        report = _report(folder, data)
    except MedtuneError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    say("done")
    print(f"\nreport: {report.resolve()}")
    return 0


def _report(folder: Path, data: DemoData) -> Path:
    from medtune.reporting.gallery import image_opener
    from medtune.reporting.report import write_report
    from medtune.reporting.summary import summary_table

    runs = [folder / name for name in REPORT_ORDER]
    out = folder / "report.html"
    write_report(
        runs, out, title="InstFree in miniature", note=data.note, samples=8, open_image=image_opener(data.image_root)
    )
    combined = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    print("\n" + summary_table(combined["runs"]))
    return out


if __name__ == "__main__":
    raise SystemExit(main())
