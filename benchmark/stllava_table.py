"""STLLaVA-Med's claim in miniature: does DPO on self-made pairs win against stage 1, by the judge and by open recall?

    python benchmark/stllava_table.py [--out FILE] [--collect-only] [seeds=[0] processes=1 ...]

Runs ``sweep/stllava_med_wbcatt`` (three seeds; a second start goes on where the first one stopped) and writes one
file: mean and standard deviation over seeds of both models' numbers, the paired gains of DPO over SFT, and the win rate
of DPO over SFT on the test questions. The win rate is that of the judge, which knows the test images' attributes; it is
given without noise and with that of the pairs, 20%. What was learned from stands beside them: how many pairs are about
each attribute, how often the chosen answer is the right one, and how far the margins moved. ``--collect-only`` trains
nothing and reads a finished sweep. Further arguments override keys of the sweep.
"""

import argparse
import csv
import json
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent))

from paper_tables import estimate, heading, line, over_seeds, parse_with_overrides, scored, write
from scipy import stats

from medtune.config import load_config
from medtune.data.sample import Message
from medtune.errors import DataError, MedtuneError
from medtune.evaluation.metrics import bootstrap_interval
from medtune.evaluation.prediction import Prediction, iterate_predictions
from medtune.evaluation.provenance import stamp
from medtune.judges import AttributeJudge
from medtune.judges.candidates import Candidate
from medtune.sweep.config import SweepConfig, SweepRun, chains, row_title, rows_of
from medtune.sweep.report import seed_differences, seeds_table
from medtune.sweep.run import run_sweep

SWEEP = "sweep/stllava_med_wbcatt"
DEFAULTS = ("output_dir=runs/stllava_table", "seeds=[0,1,2]")
OUTPUT = Path(__file__).parent / "results" / "stllava_table.json"
BASE, TUNED = "sft", "dpo"
TASK = "open"
NOISES = (0.0, 0.2)
GAINS = {"open recall": ("vqa", "measure:open_recall"), "open accuracy": ("open", "correct")}
METRICS = ("loss", "rewards/accuracies", "rewards/margins", "rewards/chosen", "rewards/rejected")
OPTIONAL = ["granularity", "cytoplasm vacuole"]
COLUMNS = {
    "open/accuracy_macro": "open accuracy",
    "vqa/open_recall_micro": "open recall",
    "vqa/open_f1_micro": "open F1",
    "vqa/closed_accuracy_strict_micro": "closed, strict",
}


def answers(run: SweepRun) -> dict[str, Prediction]:
    """A run's answers to the test questions on their own images, by the question's id."""
    path = run.folder / "predict" / "predictions.jsonl"
    rows = (row for row in iterate_predictions(path) if row.task == TASK and not row.meta.get("swapped"))
    return {row.id: row for row in rows}


def win_rate(
    pairs: Mapping[int, Mapping[str, tuple[Prediction, Prediction]]], truth: Path, noise: float
) -> dict[str, Any]:
    """How often the judge prefers the second answer; a tie is half a win. Images are resampled for the interval.

    Args:
        pairs: Seed -> question id -> answers of the two models.
        truth: Reports of the test images.
        noise: Share of the judge's choices that is turned round.
    """
    scores: dict[str, list[float]] = {}
    images: dict[str, str] = {}
    by_seed: dict[str, float] = {}
    counts = {"wins": 0, "ties": 0, "losses": 0}
    for seed, of_seed in pairs.items():
        judge = AttributeJudge(truth=str(truth), noise=noise, seed=seed, optional=OPTIONAL)
        values: list[float] = []
        for name, (first, second) in of_seed.items():
            shown = tuple(first.meta["images"])
            asked = Candidate(
                name, shown, (Message("user", first.prompt),), {}, answers=(first.prediction, second.prediction)
            )
            judged = judge.judge(asked, list, None).scores
            assert judged is not None
            value = 0.5 if judged[0] == judged[1] else float(judged[1] > judged[0])
            counts[{0.0: "losses", 0.5: "ties", 1.0: "wins"}[value]] += 1
            scores.setdefault(name, []).append(value)
            images[name], values = shown[0], [*values, value]
        by_seed[str(seed)] = statistics.fmean(values)
    means = [statistics.fmean(values) for values in scores.values()]
    interval = bootstrap_interval(
        means, [""] * len(means), [images[name] for name in scores], lambda cells: cells[:, 0], binary=False
    )
    decided = counts["wins"] + counts["losses"]
    return {
        "value": statistics.fmean(means),
        "interval": interval,
        "by_seed": by_seed,
        "questions": len(means),
        "images": len(set(images.values())),
        **counts,
        "wins_of_decided": counts["wins"] / decided if decided else None,
    }


def gain(verdicts: Mapping[int, Sequence[Mapping[str, Mapping[str, str]]]], task: str, column: str) -> dict[str, Any]:
    """The mean difference of a column of ``verdicts.csv``, second model minus first, on the same questions.

    Args:
        verdicts: Seed -> rows of the two models by the question's id.
        task: The protocol.
        column: The column; questions where it is empty are left out.

    Returns:
        ``value``, ``interval`` (95%, images resampled with the answers of all seeds), ``by_seed``, and
        ``seed_interval`` (95%, Student's t over the seeds' means; None for one seed).
    """
    found: dict[str, list[float]] = defaultdict(list)
    images: dict[str, str] = {}
    by_seed: dict[str, float] = {}
    for seed, (first, second) in verdicts.items():
        values = []
        for name, row in first.items():
            if row["task"] == task and row["swapped"] == "0" and row[column] != "":
                values.append(float(second[name][column]) - float(row[column]))
                found[name].append(values[-1])
                images[name] = row["images"]
        by_seed[str(seed)] = statistics.fmean(values)
    means = [statistics.fmean(values) for values in found.values()]
    interval = bootstrap_interval(
        means, [""] * len(means), [images[name] for name in found], lambda cells: cells[:, 0], binary=False
    )
    return {
        "value": statistics.fmean(means),
        "interval": interval,
        "seed_interval": seed_interval(list(by_seed.values())),
        "by_seed": by_seed,
        "questions": len(means),
        "images": len(set(images.values())),
    }


def seed_interval(values: Sequence[float]) -> list[float] | None:
    """The 95% interval of a mean over seeds by Student's t; None for one seed."""
    if len(values) < 2:
        return None
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return [statistics.fmean(values) - half, statistics.fmean(values) + half]


def table(config: SweepConfig) -> dict[str, Any]:
    """Everything that a finished sweep says, as plain JSON values.

    Raises:
        DataError: If a row has not been scored, or the two models answered different questions.
    """
    every = chains(config)
    rows = [row for chain in every for row in rows_of(config, chain)]
    results = scored(rows)
    runs = {(chain.variant.name, chain.seed): chain for chain in every}
    pairs = {seed: _paired(runs[BASE, seed], runs[TUNED, seed]) for seed in config.seeds}
    truth = Path(config.prepared_dir) / "test_reports.jsonl"
    base = next(variant.title for variant in config.variants if variant.name == BASE)
    verdicts = {seed: [_verdicts(runs[name, seed].folder) for name in (BASE, TUNED)] for seed in config.seeds}
    return {
        "rows": seeds_table(rows),
        "differences": seed_differences(rows, base),
        "titles": list(dict.fromkeys(row_title(row.chain.variant, row.ask) for row in rows)),
        "gains": {title: gain(verdicts, task, column) for title, (task, column) in GAINS.items()},
        "win_rate": {f"noise {noise:g}": win_rate(pairs, truth, noise) for noise in NOISES},
        "pairs": {str(seed): _judged(runs[TUNED, seed].folder) for seed in config.seeds},
        "learned_from": {
            str(seed): learned_from(runs[TUNED, seed].folder, Path(config.prepared_dir)) for seed in config.seeds
        },
        "commits_of_runs": sorted({str(one["provenance"]["commit"]) for one in results}),
    }


def _paired(first: SweepRun, second: SweepRun) -> dict[str, tuple[Prediction, Prediction]]:
    one, other = answers(first), answers(second)
    if one.keys() != other.keys():
        raise DataError(f"{first.folder} and {second.folder} answered different questions; run the sweep again.")
    return {name: (row, other[name]) for name, row in one.items()}


def _verdicts(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "verdicts.csv").open(encoding="utf-8", newline="") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def learned_from(folder: Path, prepared: Path) -> dict[str, Any]:
    """What the pairs of a run are about, how often the chosen answer is the right one, and how far the margins moved.

    Args:
        folder: The run's folder, with the steps ``judge`` and ``dpo``.
        prepared: The prepared data; the reports of its training images are the truth.

    Returns:
        ``pairs``, ``chosen_is_right`` (the share of pairs whose chosen answer names more right attributes), both again
        ``by_attribute`` (of the asked attribute; ``other`` if the question names none), and ``metrics``: name ->
        [mean of the first fifth of the steps, of the last fifth].
    """
    judge = AttributeJudge(truth=str(prepared / "train.jsonl"), optional=OPTIONAL)
    asked: Counter[str] = Counter()
    right: Counter[str] = Counter()
    names = json.loads((prepared / "training_majority.json").read_text(encoding="utf-8"))
    for row in map(json.loads, (folder / "judge" / "pairs.jsonl").read_text(encoding="utf-8").splitlines()):
        question = row["messages"][-1]["content"]
        pair = Candidate(
            row["id"], tuple(row["images"]), (Message("user", question),), {}, answers=(row["chosen"], row["rejected"])
        )
        scores = judge.judge(pair, list, None).scores
        assert scores is not None
        about = next((name for name in names if f"What is the {name}?" in question), "other")
        asked[about] += 1
        right[about] += scores[0] > scores[1]
    lines = (folder / "dpo" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [row for row in map(json.loads, lines) if "rewards/margins" in row]
    fifth = max(1, len(steps) // 5)
    return {
        "pairs": asked.total(),
        "chosen_is_right": right.total() / asked.total(),
        "by_attribute": {
            name: {"pairs": count, "chosen_is_right": right[name] / count} for name, count in asked.most_common()
        },
        "steps": len(steps),
        "metrics": {
            name: [statistics.fmean(row[name] for row in part) for part in (steps[:fifth], steps[-fifth:])]
            for name in METRICS
        },
    }


def _judged(folder: Path) -> dict[str, Any]:
    """What was asked and judged for one seed."""
    asked, judged = (
        json.loads((folder / step / "manifest.json").read_text(encoding="utf-8")) for step in ("self_question", "judge")
    )
    return {"self_question": asked["counts"], "dropped": asked["dropped"], "judge": judged["counts"]}


def markdown(result: dict[str, Any]) -> str:
    """Two Markdown tables, in percent: both models' numbers, and win rates."""
    lines = heading(["model", "seeds", *COLUMNS.values()])
    for title, numbers in result["rows"].items():
        seeds = str(numbers["open/accuracy_macro"]["seeds"])
        lines.append(line([title, seeds, *(over_seeds(numbers.get(name)) for name in COLUMNS)]))
    lines += ["", *heading(["DPO minus SFT", "95% over images", "95% over seeds", "by seed"])]
    for title, one in result["gains"].items():
        seeds = ", ".join(f"{100 * value:+.1f}" for value in one["by_seed"].values())
        over = estimate({**one, "interval": one["seed_interval"]}, "+")
        lines.append(line([title, estimate(one, "+"), over, seeds]))
    lines += ["", *heading(["judge's noise", "win rate", "wins, ties, losses"])]
    for name, one in result["win_rate"].items():
        counts = ", ".join(str(one[key]) for key in ("wins", "ties", "losses"))
        lines.append(line([name, estimate(one), counts]))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run or go on, collect, write and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--collect-only", action="store_true", help="train nothing; read a finished sweep")
    parser.add_argument("--out", type=Path, default=OUTPUT, help="the JSON file")
    parser.add_argument("--sweep", default=SWEEP, help="the sweep's config")
    options = parse_with_overrides(parser, arguments)
    try:
        config = load_config(options.sweep, SweepConfig, [*DEFAULTS, *options.overrides])
        if not options.collect_only:
            run_sweep(config)
        result = table(config)
    except MedtuneError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    result = {**stamp("benchmark/stllava_table.py", arguments or sys.argv[1:]), "sweep": options.sweep, **result}
    write(options.out, result)
    print(markdown(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
