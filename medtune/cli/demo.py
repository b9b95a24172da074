"""A method in miniature, from data to a scored report: ``make demo``, or ``python -m medtune.cli.demo``.

Each method has a demo: the sweep ``configs/sweep/demo_METHOD.yaml`` prepares real data, which come with the package,
trains a few small models and writes one report. ``--method`` chooses it; a method adds a demo by adding such a config.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from medtune.config import PACKAGE, load_config
from medtune.errors import ConfigError, MedtuneError
from medtune.sweep.config import SweepConfig
from medtune.sweep.run import run_sweep

PREFIX = "demo_"


def methods() -> list[str]:
    """Names of the methods that have a demo."""
    return sorted(path.stem.removeprefix(PREFIX) for path in (PACKAGE / "configs" / "sweep").glob(f"{PREFIX}*.yaml"))


def demo_config(method: str, overrides: Sequence[str] = ()) -> SweepConfig:
    """The sweep of a method's demo.

    Args:
        method: Name of the method, for example ``instfree``.
        overrides: Overrides of the sweep's config.

    Raises:
        ConfigError: If the method has no demo.
    """
    if method not in methods():
        raise ConfigError(f"{method!r} has no demo; choose one of {', '.join(methods())}.")
    return load_config(f"sweep/{PREFIX}{method}", SweepConfig, list(overrides))


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m medtune.cli.demo", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--method", default="instfree", help=f"one of {', '.join(methods())} (default: instfree)")
    parser.add_argument("--output-dir", type=Path, help="folder of the runs and the report (default: the config's)")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="overrides of the sweep, such as seeds=[0,1,2]"
    )
    options = parser.parse_intermixed_args(arguments)  # overrides may stand between options
    where = [] if options.output_dir is None else [f"output_dir={options.output_dir}"]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    started = time.perf_counter()

    def say(message: str) -> None:
        print(f"[{time.perf_counter() - started:4.0f} s] {message}", flush=True)

    try:
        config = demo_config(options.method, [*where, *options.overrides])
        folder = Path(config.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        say(config.note)
        say(f"training and evaluating {len(config.variants)} models, two at a time; logs in {folder / 'logs'}")
        report = run_sweep(config, say)
    except MedtuneError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    say("done")
    from medtune.reporting.summary import ranking_note, summary_table

    combined = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    note = ranking_note(combined["runs"])
    print(f"\n{summary_table(combined['runs'])}" + (f"\n{note}" if note else "") + f"\n\nreport: {report.resolve()}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
