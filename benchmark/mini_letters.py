"""Train a mini base that matches options to letters, from random weights: seven stages of ``sft``, export, gate.

    python benchmark/mini_letters.py [--family internvl] [--seed 100] [--work FOLDER] [--stages 2] [key=value ...]

Every stage is a config that can be run alone. A stopped run goes on where it stopped. ``--family`` takes another mini
model through the same stages. ``--seed`` is added to the seed of each stage: other initial weights, other orders. When
a model learns differs between seeds, so two stages are run up to three times, in other orders: the fourth until lists
about unseen cells are right, the sixth until closed questions about them are. These cells are not those of the gate.
``--stages`` trains the first stages alone, without the gate: ``--stages 2 frozen=[]`` shows what the layer that the
first stage leaves untrained is for. Further arguments override keys of every stage. The model is written to
``WORK/base``, the result of benchmark/mini_base_gate.py to ``WORK/gate.json``, and that result, steps, tokens, seconds
and losses to ``WORK/stages.json``.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch

sys.path.append(str(Path(__file__).resolve().parent))

from mini_base_gate import FAMILIES, SEED, Family, ask, component, write_questions

from medtune.config import PACKAGE, import_path, load_config
from medtune.datasets.cells import rendered_cells_dataset
from medtune.datasets.cells.attributes import ATTRIBUTES
from medtune.evaluation.provenance import stamp
from medtune.generation.answering import load_model
from medtune.generation.engine.generator import Generator
from medtune.generation.requests import Request
from medtune.training.config import TrainConfig

STAGES = (
    "mini_letters_drills",
    "mini_letters_sentences",
    "mini_letters_text",
    "mini_letters_vision",
    "mini_letters_checks",
    "mini_letters",
    "mini_letters_styles",
)
"""Configs of ``sft``, each of which starts from the weights of the one before."""

SIGHT = "mini_letters_vision"
"""The stage that is repeated until attributes of cells are seen."""
SEEN = 0.7
"""Share of right values from which on an attribute counts as seen."""
UNSEEN = 1
"""Attributes that may stay below this share; a claim about such an attribute cannot be learned afterwards."""
CLOSED = "mini_letters"
"""The stage that is repeated until enough closed questions are answered rightly."""
LEARNED = 0.75
"""Share of right yes/no answers that is enough: half are right by chance."""
ROUNDS = 3
"""Runs of such a stage at most."""
OFFSET = 2_000_000
"""Number of the first cell that is asked about between stages; far from those of training and of the gate."""


class Part(NamedTuple):
    """One run of a stage: its config, its folder, and which repetition it is, from 0."""

    name: str
    folder: Path
    repetition: int


def command(part: Part, before: Part | None, family: Family, seed: int, overrides: list[str]) -> list[str]:
    """Return the command of a run that starts from the weights of another; the first one starts from none."""
    config = load_config(f"sft/{part.name}", TrainConfig)
    words = ["tune", "run", "medtune/recipes/sft.py", "--config", f"sft/{part.name}", f"output_dir={part.folder}"]
    start = [f"checkpoint={before.folder}/weights"] if before else []
    return [
        *words,
        *start,
        f"seed={config.seed + seed + 1000 * part.repetition}",
        *of_family(family, config),
        *overrides,
    ]


def of_family(family: Family, config: TrainConfig) -> list[str]:
    """Overrides that give a stage a family's model and transform; none for the family of the config."""
    usual = FAMILIES["llama3_2_vision"]
    if family == usual:
        return []
    drills = config.transform.path == component(usual.drill_transform)
    parts = [part for part in config.trainable if part != "fusion"]  # cross-attention, which no other family has
    return [
        f"model._component_={component(family.model)}",
        f"transform._component_={component(family.drill_transform if drills else family.transform)}",
        f"trainable=[{', '.join(parts)}]",
    ]


def closed_questions(folder: Path, family: Family, cells: int) -> float:
    """Ask the weights of a run yes/no questions about unseen cells; the share of right answers."""
    write_questions(folder / "asked", cells, shuffled=False, offset=OFFSET)
    results = ask(folder / "asked", str(folder / "weights"), family, "protocols=[yes_no]", "swapped=[]")
    return float(results["protocols"]["yes_no"]["overall"]["accuracy_micro"]["value"])


def lists(folder: Path, family: Family, cells: int) -> dict[str, float]:
    """Ask the weights of a run for lists of all attributes of unseen cells; the share of right values of each."""
    model = {"_component_": component(family.model), "vocab_size": 1024}
    transform = import_path(component(family.drill_transform))(str(PACKAGE / "assets" / "mini_tokenizer"))
    built = load_model(model, str(folder / "weights"), device="cpu", dtype=torch.float32)
    generator = Generator(built, transform, batch_size=64)
    source = rendered_cells_dataset(cells, SEED, "attributes", offset=OFFSET)
    right = dict.fromkeys(ATTRIBUTES, 0)
    for answer in generator([Request(str(index), source[index], source) for index in range(cells)]):
        wanted = source[int(answer.id)].messages[-1].content.split(", ")
        for name, want, value in zip(ATTRIBUTES, wanted, answer.text.strip().split(", "), strict=False):
            right[name] += value == want
    return {name: count / cells for name, count in right.items()}


def unseen(shares: dict[str, float]) -> list[str]:
    """Return the attributes whose share of right values is below ``SEEN``."""
    return [name for name, share in shares.items() if share < SEEN]


def enough(part: Part, family: Family, cells: int, measured: dict[str, list[Any]]) -> bool:
    """Measure and print what a stage that may be repeated has taught; whether the next stage can begin."""
    if part.name == SIGHT:
        shares = lists(part.folder, family, cells)
        measured.setdefault("lists_after_rounds", []).append(shares)
        missed = unseen(shares)
        print(f"right in fewer than {100 * SEEN:.0f}% of lists: {', '.join(missed) or 'no attribute'}", flush=True)
        return len(missed) <= UNSEEN
    if part.name == CLOSED:
        share = closed_questions(part.folder, family, cells)
        measured.setdefault("closed_questions_after_rounds", []).append(share)
        print(f"yes/no questions about unseen cells: {100 * share:.1f}% right", flush=True)
        return share >= LEARNED
    return True


def train(
    work: Path, family: Family, seed: int, overrides: list[str], stages: int, cells: int
) -> tuple[list[Part], dict[str, list[Any]]]:
    """Run the stages.

    Returns:
        All runs, and what was measured after each round of the stages ``SIGHT`` and ``CLOSED``.
    """
    done: list[Part] = []
    measured: dict[str, list[Any]] = {}
    for name in STAGES[:stages]:
        for repetition in range(ROUNDS):
            folder = work / (f"{name}_round_{repetition + 1}" if repetition else name)
            part = Part(name, folder, repetition)
            run(command(part, done[-1] if done else None, family, seed, overrides))
            done.append(part)
            if enough(part, family, cells, measured):
                break
    return done, measured


def run(command: list[str]) -> None:
    """Print a command and run it; stop with its status if it fails."""
    print(" ".join(command), flush=True)
    status = subprocess.run(command, check=False).returncode
    if status:
        raise SystemExit(status)


def trained(folder: Path) -> dict[str, float]:
    """Return what the summary of a finished run counts: steps, tokens and seconds of training, over all its starts."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return {key: summary[key] for key in ("steps", "tokens", "seconds")}


def losses(folder: Path, every: int = 100) -> dict[str, float]:
    """Return the mean training loss of each hundred steps that a run has logged, by the number of the last step."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    groups: dict[int, list[float]] = {}
    for row in rows:
        if "loss" in row:
            groups.setdefault((row["step"] - 1) // every, []).append(row["loss"])
    return {str((group + 1) * every): round(statistics.fmean(values), 4) for group, values in sorted(groups.items())}


def export_and_ask(work: Path, family: str, cells: int) -> dict[str, Any]:
    """Export the last stage, ask it the questions of the gate, and return what it answered right."""
    base = work / "base"
    run(["medtune", "export", str(work / STAGES[-1]), "--to", "hf", "--dtype", "bf16", "--out", str(base)])
    gate = Path(__file__).with_name("mini_base_gate.py")
    asked = ["--checkpoint", str(base), "--work", str(work / "gate"), "--out", str(work / "gate.json")]
    run([sys.executable, str(gate), *asked, "--family", family, "--cells", str(cells)])
    found = json.loads((work / "gate.json").read_text(encoding="utf-8"))
    return {key: found[key] for key in ("gate", "gate_passed", "options_shuffled", "options_in_fixed_order")}


def main() -> int:
    """Run the stages; after the last one, export it and ask it the questions of the gate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=FAMILIES, default="llama3_2_vision", help="which mini model is trained")
    parser.add_argument("--seed", type=int, default=0, help="added to the seed of each stage (default: 0)")
    parser.add_argument("--work", type=Path, default=Path("runs/mini_letters_base"), help="folder of the runs")
    parser.add_argument("--cells", type=int, default=400, help="questions of the gate and between stages")
    parser.add_argument("--stages", type=int, default=len(STAGES), choices=range(1, len(STAGES) + 1))
    options, overrides = parser.parse_known_args()
    done, measured = train(
        options.work, FAMILIES[options.family], options.seed, overrides, options.stages, options.cells
    )
    answers = export_and_ask(options.work, options.family, options.cells) if options.stages == len(STAGES) else {}
    record = {
        **stamp(sys.argv[0], sys.argv[1:]),
        "family": options.family,
        "seed": options.seed,
        **answers,
        **measured,
        "stages": {part.folder.name: {**trained(part.folder), "losses": losses(part.folder)} for part in done},
    }
    (options.work / "stages.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
