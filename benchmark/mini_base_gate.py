"""What the mini base model can do on rendered cells it has never seen; multiple choice is claimed only past the gate.

    python benchmark/mini_base_gate.py [--checkpoint medtune/assets/mini_base] [--cells 400] [--first 1000000]
    python benchmark/mini_base_gate.py --family internvl --checkpoint FOLDER

The gate: options in random order answered with the right letter in at least 80%, yes/no in at least 85%. Each question
is asked once with its options in random order and once in their fixed order.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

from medtune.config import PACKAGE
from medtune.data.randomness import sample_rng
from medtune.data.writing import file_sha256, json_bytes, jsonl_bytes
from medtune.datasets.cells import rendered_cells_dataset
from medtune.evaluation.provenance import stamp
from medtune.recipes import evaluate, predict

SEED, OFFSET = 900, 1_000_000
GATE = {"multiple_choice": 0.80, "yes_no": 0.85}


class Family(NamedTuple):
    """Names of what a mini base is made of, in ``medtune.models.mini``."""

    model: str
    transform: str
    drill_transform: str


FAMILIES = {
    "llama3_2_vision": Family("mini_vlm", "mini_transform", "mini_drill_transform"),
    "internvl": Family("mini_internvl", "mini_internvl_transform", "mini_internvl_drill_transform"),
}
"""Cross-attention to the image (the included base), and image features among the tokens."""


def component(name: str) -> str:
    """The full name of a builder."""
    return f"medtune.models.mini.{name}"


def write_questions(folder: Path, cells: int, shuffled: bool, offset: int = OFFSET) -> None:
    """One question a cell, evenly over attributes, in the layout of a prepared data set."""
    source = rendered_cells_dataset(cells, SEED, "questions", offset=offset)
    samples = [source[index] for index in range(cells)]
    shutil.rmtree(folder, ignore_errors=True)  # answers of another base
    (folder / "images").mkdir(parents=True)
    for index, sample in enumerate(samples):
        source.open_images(sample)[0].save(folder / "images" / sample.images[0])
        if shuffled:
            sample_rng(SEED, 0, index, "options").shuffle(sample.meta["options"])
    majority = {sample.meta["attribute"]: sample.meta["options"][0] for sample in samples}
    (folder / "test.jsonl").write_bytes(jsonl_bytes(samples))
    (folder / "training_majority.json").write_bytes(json_bytes(majority))


def ask(folder: Path, checkpoint: str, family: Family, *how: str) -> dict[str, Any]:
    """Ask and score what :func:`write_questions` wrote; ``how`` are overrides that predict and evaluate share."""
    questions = [f"questions.source={folder / 'test.jsonl'}", f"questions.image_root={folder / 'images'}"]
    questions.append("questions.center_crop=1.0")
    arguments = ["--config", "predict/mini", f"checkpoint={checkpoint}", *questions, f"output_dir={folder}", *how]
    files = [f"predictions={folder / 'predictions.jsonl'}", f"prepared_dir={folder}", f"output={folder}", "name=base"]
    if predict.main([*arguments, *of_family(family)]) or evaluate.main(["--config", "evaluate/default", *files, *how]):
        raise SystemExit("prediction or evaluation failed; its message stands above")
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def of_family(family: Family) -> list[str]:
    """Overrides of ``predict`` for a family."""
    return [f"model._component_={component(family.model)}", f"transform._component_={component(family.transform)}"]


def measure(folder: Path, checkpoint: str, family: Family) -> dict[str, dict]:
    """The numbers of each protocol and of retention."""
    results = ask(folder, checkpoint, family)
    accuracy = {name: one["overall"]["accuracy_micro"] for name, one in results["protocols"].items()}
    swapped = {
        f"{name}_swapped": one["swapped"]["accuracy_micro"]
        for name, one in results["protocols"].items()
        if one.get("swapped")
    }
    return {**accuracy, **swapped, "retention": results["retention"]["composite"]}


def main() -> int:
    """Run both orders and write the result; the exit status does not depend on the gate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default=str(PACKAGE / "assets" / "mini_base"))
    parser.add_argument("--family", choices=FAMILIES, default="llama3_2_vision", help="of the checkpoint")
    parser.add_argument("--cells", type=int, default=400)
    parser.add_argument("--first", type=int, default=OFFSET, help="number of the first cell")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/mini_base_gate"), help="folder of questions and answers"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmark/results/mini_base_gate.json"))
    options = parser.parse_args()
    measured = {}
    for order in ("shuffled", "fixed"):
        write_questions(options.work / order, options.cells, order == "shuffled", options.first)
        measured[order] = measure(options.work / order, options.checkpoint, FAMILIES[options.family])
    passed = all(measured["shuffled"][name]["value"] >= least for name, least in GATE.items())
    result = {
        **stamp(sys.argv[0], sys.argv[1:]),
        "family": options.family,
        "weights_sha256": file_sha256(Path(options.checkpoint) / "model.safetensors"),
        "gate": GATE,
        "gate_passed": passed,
        "options_shuffled": measured["shuffled"],
        "options_in_fixed_order": measured["fixed"],
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"gate {'passed' if passed else 'not passed'}: {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
