"""Train a mini base that matches options to letters, from random weights: six stages of ``sft``, export, gate.

    python benchmark/mini_letters.py [--seed 100] [--work runs/mini_letters_base] [key=value ...]

Every stage is a config that can be run alone. A stopped run goes on where it stopped. ``--seed`` is added to the seed
of each stage: other initial weights, other orders. Further arguments override keys of every stage. The model is written
to ``WORK/base``, the result of benchmark/mini_base_gate.py to ``WORK/gate.json``, the seconds to ``WORK/stages.json``.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from medtune.config import load_config
from medtune.evaluation.provenance import stamp
from medtune.training.config import TrainConfig

STAGES = (
    "mini_letters_drills",
    "mini_letters_sentences",
    "mini_letters_text",
    "mini_letters_vision",
    "mini_letters",
    "mini_letters_styles",
)
"""Configs of ``sft``, each of which starts from the weights of the one before."""


def commands(work: Path, seed: int, overrides: list[str]) -> list[list[str]]:
    """Return the command of each stage."""
    listed: list[list[str]] = []
    for number, name in enumerate(STAGES):
        own = load_config(f"sft/{name}", TrainConfig).seed
        words = ["tune", "run", "medtune/recipes/sft.py", "--config", f"sft/{name}", f"output_dir={work / name}"]
        start = [f"checkpoint={work / STAGES[number - 1]}/weights"] if number else []
        listed.append([*words, *start, f"seed={own + seed}", *overrides])
    return listed


def run(command: list[str]) -> float:
    """Run a command, print it, and return its seconds; stop with its status if it fails."""
    print(" ".join(command), flush=True)
    started = time.monotonic()
    status = subprocess.run(command, check=False).returncode
    if status:
        raise SystemExit(status)
    return time.monotonic() - started


def main() -> int:
    """Run the stages, export the last one and ask it the questions of the gate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="added to the seed of each stage (default: 0)")
    parser.add_argument("--work", type=Path, default=Path("runs/mini_letters_base"), help="folder of the runs")
    parser.add_argument("--cells", type=int, default=400, help="questions of the gate")
    options, overrides = parser.parse_known_args()
    seconds = {
        name: run(command)
        for name, command in zip(STAGES, commands(options.work, options.seed, overrides), strict=True)
    }
    base = options.work / "base"
    run(["medtune", "export", str(options.work / STAGES[-1]), "--to", "hf", "--dtype", "bf16", "--out", str(base)])
    gate = Path(__file__).with_name("mini_base_gate.py")
    found = options.work / "gate.json"
    asked = ["--checkpoint", str(base), "--work", str(options.work / "gate"), "--out", str(found)]
    run([sys.executable, str(gate), *asked, "--cells", str(options.cells)])
    record = {**stamp(sys.argv[0], sys.argv[1:]), "seed": options.seed, "seconds": seconds}
    (options.work / "stages.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
