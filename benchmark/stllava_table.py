"""STLLaVA-Med's claim in miniature: does DPO on self-made pairs win against stage 1, by the judge and by open recall?

    python benchmark/stllava_table.py [--out FILE] [--collect-only] [seeds=[0] processes=1 ...]

Runs ``sweep/demo_dpo`` with three seeds (a second start goes on where the first one stopped) and writes one file: mean
and standard deviation over seeds of both models' numbers, their paired differences, and the win rate of DPO over SFT on
the test questions. The win rate is that of the judge, which knows the test images' attributes; it is given without
noise and with that of the pairs, 20%. ``--collect-only`` trains nothing and reads a finished sweep. Further arguments
override keys of the sweep.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent))

from paper_tables import estimate, heading, line, over_seeds, scored, write

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

SWEEP = "sweep/demo_dpo"
DEFAULTS = ("output_dir=runs/stllava_table", "seeds=[0,1,2]")
OUTPUT = Path(__file__).parent / "results" / "stllava_table.json"
BASE, TUNED = "sft", "dpo"
TASK = "open"
NOISES = (0.0, 0.2)
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
    return {
        "rows": seeds_table(rows),
        "differences": seed_differences(rows, base),
        "titles": list(dict.fromkeys(row_title(row.chain.variant, row.ask) for row in rows)),
        "win_rate": {f"noise {noise:g}": win_rate(pairs, truth, noise) for noise in NOISES},
        "pairs": {str(seed): _judged(runs[TUNED, seed].folder) for seed in config.seeds},
        "commits_of_runs": sorted({str(one["provenance"]["commit"]) for one in results}),
    }


def _paired(first: SweepRun, second: SweepRun) -> dict[str, tuple[Prediction, Prediction]]:
    one, other = answers(first), answers(second)
    if one.keys() != other.keys():
        raise DataError(f"{first.folder} and {second.folder} answered different questions; run the sweep again.")
    return {name: (row, other[name]) for name, row in one.items()}


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
    for title, one in result["differences"].items():
        lines += ["", *(f"{title}, {task}: {estimate(one[task])}" for task in (TASK, "vqa") if task in one)]
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
    parser.add_argument("overrides", nargs="*", help="key=value of the sweep's config")
    options = parser.parse_args(arguments)
    try:
        config = load_config(SWEEP, SweepConfig, [*DEFAULTS, *options.overrides])
        if not options.collect_only:
            run_sweep(config)
        result = table(config)
    except MedtuneError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    result = {**stamp("benchmark/stllava_table.py", arguments or sys.argv[1:]), "sweep": SWEEP, **result}
    write(options.out, result)
    print(markdown(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
