"""VITask's Table 2 in miniature: each part alone and together, with and without exemplars, three seeds.

    python benchmark/vitask_table.py [--sweep NAME --out FILE] [--collect-only] [seeds=[0] processes=1 ...]

Runs ``sweep/vitask_mini`` (a second start goes on where the first one stopped; data and task-specific model are made on
the way) and writes one file: mean and standard deviation over seeds of every row's accuracies, macro-F1 and response
ranking, paired differences, majority, and the paper's own numbers. ``--sweep sweep/vitask_mini_resnet`` runs the same
rows with another task-specific model. ``--collect-only`` trains nothing and reads a sweep that is finished. Further
arguments override keys of the sweep.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent))

from paper_tables import estimate, heading, line, over_seeds, parse_with_overrides, percent, scored, write

from medtune.config import load_config
from medtune.errors import MedtuneError
from medtune.evaluation.provenance import stamp
from medtune.sweep.config import SweepConfig, chains, row_title, rows_of
from medtune.sweep.report import seed_differences, seeds_table
from medtune.sweep.run import run_sweep

SWEEP = "sweep/vitask_mini"
OUTPUT = Path(__file__).parent / "results" / "vitask_table.json"
REFERENCES = ("Vanilla, w/o EP", "EP, w/o EP", "EP, w/ EP", "TSM")
"""Rows that the others are compared with, pair by pair."""

# Of the paper, on InternVL2-2B, in percent: accuracy and macro-F1 of one set after another.
TABLE_2_SETS = ("chest", "derma", "oct", "retina", "tissue")
TABLE_2 = {
    "Vanilla, w/o EP": (52.3, 2.4, 77.0, 49.9, 72.6, 70.4, 59.0, 37.0, 56.9, 41.9),
    "EP + RDA, w/o EP": (51.7, 7.8, 79.9, 58.5, 84.4, 83.7, 61.5, 40.1, 63.2, 52.3),
    "EP + CRT, w/o EP": (51.3, 8.8, 78.6, 59.3, 81.7, 81.0, 59.3, 41.3, 62.2, 50.5),
    "VITask, w/o EP": (51.3, 10.2, 81.0, 63.3, 85.3, 84.6, 62.5, 45.7, 64.3, 53.8),
    "EP, w/ EP": (51.4, 11.8, 86.3, 72.5, 95.1, 95.0, 60.8, 48.9, 76.0, 68.9),
    "EP + RDA, w/ EP": (51.4, 12.3, 87.3, 76.0, 94.9, 95.0, 62.7, 47.1, 76.1, 69.1),
    "EP + CRT, w/ EP": (51.3, 12.2, 87.8, 77.4, 94.9, 95.0, 62.3, 50.9, 76.2, 69.1),
    "VITask, w/ EP": (51.7, 12.9, 87.7, 77.2, 95.2, 95.2, 63.2, 52.2, 76.1, 69.0),
}
TABLE_1_SETS = ("pneumonia", "breast", "blood")
TABLE_1 = {
    "TSM": (96.8, 96.5, 89.7, 86.6, 98.7, 99.0),
    "Vanilla, w/o EP": (88.6, 87.3, 74.4, 52.4, 93.1, 81.8),
    "VITask, w/o EP": (88.8, 87.2, 84.6, 79.8, 98.3, 86.4),
    "VITask, w/ EP": (93.1, 92.3, 86.5, 82.8, 99.1, 87.0),
}
COLUMNS = {
    "classification/accuracy_macro": "accuracy",
    "classification/f1_macro": "macro-F1",
    "response_likelihood/auc_macro": "ranking AUC",
    "response_likelihood/overlap_macro": "ranking overlap",
}
OF_SETS = {"accuracy": "accuracy", "f1_macro": "macro-F1"}


def table(config: SweepConfig) -> dict[str, Any]:
    """Everything that a finished sweep says, as plain JSON values.

    Raises:
        DataError: If a row has not been scored.
    """
    rows = [row for chain in chains(config) for row in rows_of(config, chain)]
    titles = [row_title(row.chain.variant, row.ask) for row in rows]
    results = scored(rows)
    first = results[0]
    return {
        "rows": seeds_table(rows),
        "differences": {base: seed_differences(rows, base) for base in REFERENCES if base in titles},
        "n": {name: one["accuracy"]["n"] for name, one in first["protocols"]["classification"]["attributes"].items()},
        "majority": _majority(first),
        "commits_of_runs": sorted({str(one["provenance"]["commit"]) for one in results}),
        "paper": {
            "unit": "percent: accuracy, macro-F1 of each set; InternVL2-2B",
            "table_2": {"sets": TABLE_2_SETS, **TABLE_2},
            "table_1": {"sets": TABLE_1_SETS, **TABLE_1},
        },
    }


def _majority(results: dict[str, Any]) -> dict[str, float]:
    overall = results["protocols"]["classification"]["overall"]
    return {name: overall[name]["value"] for name in ("majority_macro", "majority_f1_macro", "chance_macro")}


def markdown(result: dict[str, Any]) -> str:
    """Three Markdown tables: means over sets, each set, and paired differences; in percent."""
    rows, counts, majority = result["rows"], result["n"], result["majority"]
    held = ", ".join(f"{name} {n}" for name, n in counts.items())
    lines = [
        f"n = {sum(counts.values()):,} images ({held}). Percent, mean over sets, ± deviation over seeds.",
        "",
        *heading(["model", "seeds", *COLUMNS.values()]),
    ]
    for title, numbers in rows.items():
        seeds = str(numbers["classification/accuracy_macro"]["seeds"])
        lines.append(line([title, seeds, *(over_seeds(numbers.get(name)) for name in COLUMNS)]))
    baseline = [percent(majority[name]) for name in ("majority_macro", "majority_f1_macro")]
    lines.append(line(["majority of training", "", *baseline, "", ""]))
    keys = {f"{one}/{what}": f"{one}, {title}" for one in counts for what, title in OF_SETS.items()}
    lines += ["", *heading(["model", *keys.values()])]
    for title, numbers in rows.items():
        lines.append(line([title, *(over_seeds(numbers.get(f"classification/{key}")) for key in keys)]))
    for base, differences in result["differences"].items():
        lines += ["", *heading([f"minus {base}", "accuracy", "macro-F1"])]
        for title, one in differences.items():
            number = one["classification"]
            lines.append(line([title, estimate(number, "+"), estimate(number["f1_macro"], "+")]))
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, SweepConfig]:
    """The options, and the sweep that they ask for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--collect-only", action="store_true", help="train nothing; read a finished sweep")
    parser.add_argument("--sweep", default=SWEEP, help="a sweep of like rows, such as sweep/vitask_mini_resnet")
    parser.add_argument("--out", type=Path, default=OUTPUT, help="the JSON file")
    options = parse_with_overrides(parser, arguments)
    return options, load_config(options.sweep, SweepConfig, options.overrides)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run or go on, collect, write and print."""
    try:
        options, config = parse(arguments)
        if not options.collect_only:
            run_sweep(config)
        result = table(config)
    except MedtuneError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    result = {
        **stamp("benchmark/vitask_table.py", arguments or sys.argv[1:]),
        "sweep": options.sweep,
        **result,
    }
    write(options.out, result)
    print(markdown(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
