"""BioMed-VITAL's claim in miniature: do mixed preferences make a better selector, and the selected half a better model?

    python benchmark/selector_table.py [--out FILE] [--seeds 0,1,2] [--folder runs/selector_table]

Preferences are made of WBCAtt's reports (``benchmark/selector_data.py``): 200 choices of people with 10% slips, and the
ratings of 2,000 answers by a model that sees three of ten attributes. The recipes of the package do the rest. For each
seed, selection models learn from both sources, from each alone, with other weights w (Table 1), and with the paper's
literal loss and the official hinge; all take the same number of steps, and are measured on 600 choices about test
images. Then the mixed model selects half of 1,000 conversations, of which every second one has four exchanged
attributes, and the mini model is tuned on this half, on a random half, and on all, with the same number of steps. A
second start goes on where the first one stopped.
"""

import argparse
import csv
import json
import random
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent))

import numpy as np
import torch
from paper_tables import estimate, heading, line, write
from selector_data import CROP, QUESTION, Encoder, Sizes, right_share, write_lines, write_seed
from stllava_table import seed_interval

from medtune.config import data_root
from medtune.data.randomness import sample_rng
from medtune.datasets import jsonl_dataset
from medtune.errors import ConfigError, MedtuneError
from medtune.evaluation.metrics import bootstrap_interval
from medtune.evaluation.prediction import iterate_predictions
from medtune.evaluation.provenance import stamp
from medtune.models.selector.builders import load_selector
from medtune.sweep.run import run_recipe

OUTPUT = Path(__file__).parent / "results" / "selector.json"
IMAGES = "${medtune_data:wbcatt}/wbcatt_128.tar"
WEIGHTS = (1, 10, 30, 100)
MIXED = 30
"""w that makes the two sources count the same: as many model preferences as there are for each human one."""
LEARNT_FROM = {
    "mixed": ("mixed", []),
    "human_only": ("human", []),
    "model_only": ("model", []),
    "literal_loss": ("mixed", ["objective.loss=literal"]),
    "hinge_loss": ("mixed", ["objective.loss=hinge"]),
}
TUNED = ("selected", "random", "all")
TUNED_IMAGES = 300


def variants() -> dict[str, tuple[str, list[str]]]:
    """Name -> folder of pairs and overrides of every selection model."""
    found = {name: (pairs, [f"objective.human_weight={MIXED}", *words]) for name, (pairs, words) in LEARNT_FROM.items()}
    return found | {f"w_{w}": ("mixed", [f"objective.human_weight={w}"]) for w in WEIGHTS if w != MIXED}


def done(folder: Path, name: str, work: Any) -> None:
    """Do a piece of work once; a mark in the folder says that it is done."""
    mark = folder / f".{name}.done"
    if not mark.is_file():
        work()
        mark.touch()


def make_pairs(folder: Path, sizes: Sizes) -> None:
    """Make the pairs of both sources, of people, and of the model, all with the same test pairs."""
    human = [f"human=[{folder / 'human.jsonl'}]"]
    model = [f"records=[{folder / 'rated.jsonl'}]", f"ratings=[{folder / 'ratings.jsonl'}]"]
    shared = [
        f"validation=[{folder / 'test.jsonl'}]",
        f"features.path={folder / 'features.npy'}",
        f"features.ids={folder / 'ids.txt'}",
        f"model_pairs={sizes.pairs}",
        "context=false",
    ]
    for name, words in (("mixed", human + model), ("human", human), ("model", model)):
        run_recipe(folder, "selector_pairs", ["selector_pairs/stored", *shared, *words, f"output_dir={folder / name}"])


def train_selector(folder: Path, name: str, pairs: str, words: Sequence[str], seed: int, steps: int) -> None:
    """Train and measure one selection model."""
    run_recipe(
        folder,
        "selector",
        [
            "selector/features",
            f"model.features={folder / pairs}",
            f"dataset.source={folder / pairs / 'train.jsonl'}",
            f"dataset_val.source={folder / pairs / 'val.jsonl'}",
            f"max_steps={steps}",
            f"seed={seed}",
            f"output_dir={folder / 'selector' / name}",
            *words,
        ],
    )


def select_half(folder: Path) -> None:
    """Select the better half of the generated conversations by the mixed model."""
    run_recipe(
        folder,
        "selection",
        [
            "selection/scores",
            f"data={folder / 'generated.jsonl'}",
            "scores=null",
            f"weights={folder / 'selector/mixed/weights'}",
            f"features={{_component_: medtune.curation.features.StoredFeatures, path: {folder / 'features.npy'}, "
            f"ids: {folder / 'ids.txt'}}}",
            f"output_dir={folder / 'selection'}",
        ],
    )


def tuning_data(folder: Path, seed: int) -> dict[str, Path]:
    """Write the parts of the data that the mini model is tuned on; return their files."""
    lines = (folder / "generated.jsonl").read_text(encoding="utf-8").splitlines()
    half = random.Random(seed).sample(lines, len(lines) // 2)
    parts = {"random": half, "all": lines}
    for name, rows in parts.items():
        (folder / f"tuning_{name}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return {
        "selected": folder / "selection" / "selected.jsonl",
        **{name: folder / f"tuning_{name}.jsonl" for name in parts},
    }


def tune(folder: Path, name: str, data: Path, seed: int, steps: int) -> None:
    """Tune the mini model on conversations, and let it describe test images."""
    run = folder / "tuned" / name
    run_recipe(
        folder,
        "sft",
        [
            "sft/mini",
            f"dataset.parts=[{{_component_: medtune.datasets.jsonl_dataset, source: {data}, image_root: '{IMAGES}', "
            f"center_crop: {CROP}}}]",
            f"max_steps={steps}",
            "batch_size=16",
            "optimizer.lr=5e-4",
            "schedule={kind: linear, warmup_steps: 10, min_ratio: 0.1}",
            "trainable=[vision,projection,fusion,decoder]",
            f"seed={seed}",
            f"output_dir={run}",
        ],
    )
    run_recipe(
        folder,
        "predict",
        [
            "predict/mini",
            f"checkpoint={run / 'weights'}",
            f"questions.source={folder.parent / 'questions.jsonl'}",
            "protocols=[free_form]",
            "swapped=[]",
            "max_new_tokens=72",
            f"output_dir={run / 'predict'}",
        ],
    )


def write_questions(root: Path, prepared: Path, images: str) -> None:
    """Write the test questions of the tuned models, the same for every seed."""
    test = jsonl_dataset(str(prepared / "test_reports.jsonl"), images)
    rows, truth = [], {}
    for place in random.Random(1).sample(range(len(test)), TUNED_IMAGES):
        sample = test[place]
        turns = [{"role": "user", "content": QUESTION}]
        rows.append({"id": sample.id, "images": list(sample.images), "messages": turns, "meta": {}})
        truth[sample.images[0]] = sample.messages[-1].content
    write_lines(root / "questions.jsonl", rows)
    (root / "questions_truth.json").write_text(json.dumps(truth), encoding="utf-8")


def run(root: Path, seeds: Sequence[int], sizes: Sizes, steps: int, tuning_steps: int) -> None:
    """Run everything that is not done yet."""
    root.mkdir(parents=True, exist_ok=True)
    prepared = root / "prepared"
    wanted = ["prepare/wbcatt", f"image_root={IMAGES}", f"output_dir={prepared}"]
    done(root, "prepared", lambda: run_recipe(root, "prepare", wanted))
    root_of_data = data_root()
    if root_of_data is None:
        raise ConfigError("$MEDTUNE_DATA is not set; name the folder of the data sets")
    images = str(root_of_data / "wbcatt" / "wbcatt_128.tar")
    done(root, "questions", lambda: write_questions(root, prepared, images))
    encoder: list[Encoder] = []
    for seed in seeds:
        folder = root / f"seed_{seed}"

        def features(seed: int = seed, folder: Path = folder) -> None:
            encoder[:] = encoder or [Encoder.packaged()]
            write_seed(folder, prepared, images, seed, sizes, encoder[0])

        folder.mkdir(exist_ok=True)
        done(folder, "data", features)
        done(folder, "pairs", lambda folder=folder: make_pairs(folder, sizes))
        for name, (pairs, words) in variants().items():
            done(
                folder,
                f"selector_{name}",
                lambda name=name, pairs=pairs, words=words, seed=seed, folder=folder: train_selector(
                    folder, name, pairs, words, seed, steps
                ),
            )
        done(folder, "selection", lambda folder=folder: select_half(folder))
        for name, data in tuning_data(folder, seed).items():
            done(
                folder,
                f"tuned_{name}",
                lambda name=name, data=data, seed=seed, folder=folder: tune(folder, name, data, seed, tuning_steps),
            )


def in_order(folder: Path) -> dict[str, float]:
    """Return 1 for each test pair in the right order, by the pair's id; a tie counts half."""
    with (folder / "pair_scores.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    scores = {row["id"]: (float(row["preferred"]), float(row["rejected"])) for row in rows}
    return {name: 0.5 if one == other else float(one > other) for name, (one, other) in scores.items()}


def over_images(by_seed: Mapping[int, Mapping[str, float]]) -> dict[str, Any]:
    """Return the mean of some values over seeds with intervals.

    Args:
        by_seed: seed -> value by the test image's number, which is the same image for every seed.

    Returns:
        ``value``, ``interval`` (95%, images resampled with all seeds), ``seed_interval`` (95%, Student's t) and
        ``by_seed``.
    """
    names = list(next(iter(by_seed.values())))
    means = [statistics.fmean(values[name] for values in by_seed.values()) for name in names]
    seeds = {str(seed): statistics.fmean(values.values()) for seed, values in by_seed.items()}
    return {
        "value": statistics.fmean(means),
        "interval": bootstrap_interval(means, [""] * len(means), names, lambda cells: cells[:, 0], binary=False),
        "seed_interval": seed_interval(list(seeds.values())),
        "by_seed": seeds,
        "images": len(names),
    }


def differences(one: Mapping[int, Mapping[str, float]], other: Mapping[int, Mapping[str, float]]) -> dict[str, Any]:
    """Return the mean of ``one`` minus ``other`` on the same images, with intervals; see :func:`over_images`."""
    return over_images(
        {seed: {name: value - other[seed][name] for name, value in values.items()} for seed, values in one.items()}
    )


@torch.inference_mode()
def images_exchanged(folder: Path, seed: int) -> float:
    """Return the mixed model's accuracy if every test pair has the image of another one, so that texts alone decide."""
    model = load_selector(folder / "selector" / "mixed" / "weights")
    table = torch.from_numpy(np.load(folder / "features.npy"))
    ids = {name: place for place, name in enumerate((folder / "ids.txt").read_text(encoding="utf-8").splitlines())}
    rows = list(map(json.loads, (folder / "mixed" / "val.jsonl").read_text(encoding="utf-8").splitlines()))
    places = [[ids[row[side]["id"]] for side in ("preferred", "rejected")] for row in rows]
    order = list(range(len(rows)))
    sample_rng(seed, 0, 0, "exchanged images").shuffle(order)
    width = model.widths[0]
    scores = []
    for side in (0, 1):
        features = table[[pair[side] for pair in places]].clone()
        features[:, width:] = table[[places[other][side] for other in order]][:, width:]
        scores.append(model.scores_of(features))
    return float((scores[0] > scores[1]).double().mean())


def described(folder: Path, truth: Mapping[str, str]) -> dict[str, float]:
    """Return the share of right attributes in a tuned model's description of each test image."""
    rows = iterate_predictions(folder / "predict" / "predictions.jsonl")
    return {row.meta["images"][0]: right_share(row.prediction, truth[row.meta["images"][0]]) for row in rows}


def table(root: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """Return everything that the finished runs say, as plain JSON values."""
    folders = {seed: root / f"seed_{seed}" for seed in seeds}
    right = {
        name: {seed: in_order(folder / "selector" / name) for seed, folder in folders.items()} for name in variants()
    }
    measures: dict[str, dict[str, list[float]]] = {}
    for name in variants():
        found = [
            json.loads((folder / "selector" / name / "selection.json").read_text(encoding="utf-8"))["measures"]
            for folder in folders.values()
        ]
        measures[name] = {key: [one[key]["value"] for one in found] for key in found[0]}
    truth = json.loads((root / "questions_truth.json").read_text(encoding="utf-8"))
    tuned = {
        name: {seed: described(folder / "tuned" / name, truth) for seed, folder in folders.items()} for name in TUNED
    }
    best = {seed: max(("human_only", "model_only"), key=lambda name: _mean(right[name][seed])) for seed in seeds}
    return {
        **{f"accuracy_{name}": over_images(right[name]) for name in LEARNT_FROM},
        "accuracy_images_exchanged": {str(seed): images_exchanged(folder, seed) for seed, folder in folders.items()},
        "gains": {
            "mixed minus human_only": differences(right["mixed"], right["human_only"]),
            "mixed minus model_only": differences(right["mixed"], right["model_only"]),
            "mixed minus literal_loss": differences(right["mixed"], right["literal_loss"]),
            "mixed minus the better source": differences(
                right["mixed"], {seed: right[best[seed]][seed] for seed in seeds}
            ),
        },
        "weights": {
            str(w): {
                key: statistics.fmean(values) for key, values in measures["mixed" if w == MIXED else f"w_{w}"].items()
            }
            for w in WEIGHTS
        },
        "measures": measures,
        "selected": {str(seed): _selected(folder) for seed, folder in folders.items()},
        "tuned": {name: over_images(values) for name, values in tuned.items()},
        "tuning_gains": {
            f"selected minus {name}": differences(tuned["selected"], tuned[name])
            for name in TUNED
            if name != "selected"
        },
    }


def _mean(values: Mapping[str, float]) -> float:
    return statistics.fmean(values.values())


def _selected(folder: Path) -> dict[str, float]:
    """Return the share of conversations without an exchanged attribute, before and after the selection."""
    truth = json.loads((folder / "truth.json").read_text(encoding="utf-8"))
    lines = (folder / "selection" / "selected.jsonl").read_text(encoding="utf-8").splitlines()
    taken = [json.loads(text)["id"] for text in lines]
    return {
        "right_before": statistics.fmean(share == 1 for share in truth.values()),
        "right_selected": statistics.fmean(truth[name] == 1 for name in taken),
    }


def markdown(result: Mapping[str, Any]) -> str:
    """Return Markdown tables, in percent."""
    lines = heading(["the selector learned from", "accuracy", "95% over seeds", "by seed"])
    for name in LEARNT_FROM:
        lines.append(_line(name.replace("_", " "), result[f"accuracy_{name}"]))
    lines += [_line(name, one, "+") for name, one in result["gains"].items()]
    lines += ["", *heading(["w", "ACC", "AUC", "mean rank", "MAP"])]
    for w, one in result["weights"].items():
        lines.append(line([w, *(f"{100 * one[key]:.1f}" for key in ("accuracy", "auc", "mean_rank", "map"))]))
    lines += ["", *heading(["the mini model was tuned on", "right attributes", "95% over seeds", "by seed"])]
    lines += [_line(name, one) for name, one in result["tuned"].items()]
    lines += [_line(name, one, "+") for name, one in result["tuning_gains"].items()]
    return "\n".join(lines)


def _line(name: str, one: Mapping[str, Any], sign: str = "") -> str:
    seeds = ", ".join(f"{100 * value:{sign}.1f}" for value in one["by_seed"].values())
    return line([name, estimate(one, sign), estimate({**one, "interval": one["seed_interval"]}, sign), seeds])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run or go on, collect, write and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUTPUT, help="the JSON file")
    parser.add_argument("--folder", type=Path, default=Path("runs/selector_table"), help="folder of the runs")
    parser.add_argument("--seeds", default="0,1,2", help="seeds, with commas between them")
    parser.add_argument("--steps", type=int, default=300, help="steps of each selection model")
    parser.add_argument("--tuning-steps", type=int, default=100, help="steps of each tuning")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    seeds, sizes = [int(seed) for seed in options.seeds.split(",")], Sizes()
    try:
        run(options.folder, seeds, sizes, options.steps, options.tuning_steps)
    except MedtuneError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    result = table(options.folder, seeds)
    settings = {"sizes": vars(sizes), "steps": options.steps, "tuning_steps": options.tuning_steps, "w": MIXED}
    result = {**stamp("benchmark/selector_table.py", arguments or sys.argv[1:]), "settings": settings, **result}
    write(options.out, result)
    print(markdown(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
