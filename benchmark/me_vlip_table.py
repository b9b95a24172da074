"""ME-VLIP's claim in miniature: do routed adapters of one task each answer better than one adapter of all tasks?

    python benchmark/me_vlip_table.py [--out FILE] [--collect-only] [seeds=[0] processes=1 ...]

Runs ``sweep/me_vlip_mini`` (a second start goes on where the first one stopped) and writes one file: mean and standard
deviation over seeds of each model's numbers, the paired differences from the adapter of all tasks with intervals over
images, and where the router sent the questions. ``--collect-only`` trains nothing and reads a finished sweep. Further
arguments override keys of the sweep.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent))

from paper_tables import heading, line, parse_with_overrides, scored, write

from medtune.config import load_config
from medtune.errors import DataError, MedtuneError
from medtune.evaluation.prediction import iterate_predictions
from medtune.evaluation.provenance import stamp
from medtune.sweep.config import ReportRow, SweepConfig, SweepRun, chains, row_title, rows_of
from medtune.sweep.report import seed_differences, seeds_table
from medtune.sweep.run import run_sweep

SWEEP = "sweep/me_vlip_mini"
OUTPUT = Path(__file__).parent / "results" / "me_vlip_table.json"
ALL_TASKS, ROUTED = "general", "routed"
COMPARED = ("base", ALL_TASKS, "oracle", ROUTED)
FALLBACK = ALL_TASKS
COLUMNS = {
    "balanced_accuracy": ("classification, balanced accuracy", 100.0),
    "detection_f1_50": ("detection, F1 at 0.5", 100.0),
    "counting_mae": ("counting, MAE", 1.0),
    "regression_mae": ("regression, MAE", 1.0),
}


def table(config: SweepConfig) -> dict[str, Any]:
    """Everything that a finished sweep says, as plain JSON values.

    Raises:
        DataError: If a row has not been scored, or a routed answer does not say its adapter.
    """
    every = chains(config)
    rows = [row for chain in every for row in rows_of(config, chain)]
    results = scored(rows)
    compared = [row for row in rows if row.chain.variant.name in COMPARED]
    titles = {chain.variant.name: row_title(chain.variant, rows_of(config, chain)[0].ask) for chain in every}
    return {
        "rows": seeds_table(rows),
        "titles": titles,
        "unread": unread(rows, results),
        "differences": {title: one.get("flare", {}) for title, one in _differences(compared, titles).items()},
        "routing": {str(run.seed): routing(run) for run in every if run.variant.name == ROUTED},
        "commits_of_runs": sorted({str(one["provenance"]["commit"]) for one in results}),
    }


def _differences(compared: Sequence[ReportRow], titles: dict[str, str]) -> dict[str, Any]:
    return seed_differences(compared, titles[ALL_TASKS])


def unread(rows: Sequence[ReportRow], results: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Row title -> task -> the share of answers that could not be read, mean over seeds; an error leaves them out."""
    shares: dict[str, dict[str, list[float]]] = {}
    for row, one in zip(rows, results, strict=True):
        of_row = shares.setdefault(row_title(row.chain.variant, row.ask), {})
        for name, number in one["protocols"]["flare"]["overall"].items():
            if name.endswith("_unread") and number["value"] is not None:
                of_row.setdefault(name.removesuffix("_unread"), []).append(number["value"])
    return {title: {task: fmean(values) for task, values in of.items()} for title, of in shares.items()}


def routing(run: SweepRun) -> dict[str, Any]:
    """Where the router sent the test questions: to the adapter of their task, to that of all tasks, to another one.

    Raises:
        DataError: If an answer does not say its adapter.
    """
    counts: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    for row in iterate_predictions(run.folder / "predict" / "predictions.jsonl"):
        adapter, task = row.meta.get("notes", {}).get("adapter"), str(row.meta.get("flare_task"))
        if not isinstance(adapter, str):
            raise DataError(f"{run.folder}: the answer to {row.id!r} names no adapter; answer again with a router.")
        place = "own" if adapter == task else "fallback" if adapter == FALLBACK else "other"
        counts[place] += 1
        wrong[f"{task} -> {adapter}"] += place != "own"
    return {"questions": counts.total(), **counts, "not_own": dict(sorted((+wrong).items()))}


def markdown(result: dict[str, Any]) -> str:
    """Markdown tables: the numbers of every model, the differences from the adapter of all tasks, and the routes."""
    lines = heading(["model", "seeds", *(title for title, _ in COLUMNS.values()), "unread, worst task"])
    for name in COMPARED:
        numbers = result["rows"][result["titles"][name]]
        seeds = str(max((one["seeds"] for one in numbers.values()), default=0))
        cells = [_spread(numbers.get(f"flare/{key}"), unit) for key, (_, unit) in COLUMNS.items()]
        worst = max(result["unread"][result["titles"][name]].values(), default=0.0)
        lines.append(line([result["titles"][name], seeds, *cells, f"{100 * worst:.1f}"]))
    lines += ["", *heading(["difference from MT", *(title for title, _ in COLUMNS.values())])]
    for title, numbers in result["differences"].items():
        cells = [_difference(numbers.get(key), unit) for key, (_, unit) in COLUMNS.items()]
        lines.append(line([title, *cells]))
    lines += ["", *heading(["seed", "questions", "own adapter", "fallback", "another"])]
    for seed, one in result["routing"].items():
        lines.append(line([seed, *(str(one.get(key, 0)) for key in ("questions", "own", "fallback", "other"))]))
    return "\n".join(lines)


def _spread(one: dict[str, Any] | None, unit: float) -> str:
    if one is None:
        return ""
    places = 1 if unit == 100.0 else 2
    deviation = "" if one["deviation"] is None else f" ± {unit * one['deviation']:.{places}f}"
    return f"{unit * one['mean']:.{places}f}{deviation}"


def _difference(one: dict[str, Any] | None, unit: float) -> str:
    if one is None or one["value"] is None:
        return ""
    places = 1 if unit == 100.0 else 2
    ends = one["interval"]
    value = f"{unit * one['value']:+.{places}f}"
    return value if ends is None else f"{value} [{unit * ends[0]:+.{places}f}, {unit * ends[1]:+.{places}f}]"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run or go on, collect, write and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--collect-only", action="store_true", help="train nothing; read a finished sweep")
    parser.add_argument("--out", type=Path, default=OUTPUT, help="the JSON file")
    options = parse_with_overrides(parser, arguments)
    try:
        config = load_config(SWEEP, SweepConfig, options.overrides)
        if not options.collect_only:
            run_sweep(config)
        result = table(config)
    except MedtuneError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    result = {**stamp("benchmark/me_vlip_table.py", arguments or sys.argv[1:]), "sweep": SWEEP, **result}
    write(options.out, result)
    print(markdown(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
