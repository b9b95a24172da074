"""InstFree's Tables 1, 2 and 4 and Figures 6 and 7 in miniature: ten models, every test image of WBCAtt.

    python benchmark/instfree_table.py [--sweep NAME] [--processes 2] [--collect-only] [seeds=[0] ...]

Prepares the data where they are not prepared, runs ``sweep/mini_tables`` (a second start goes on where the first one
stopped) and writes one file: mean and standard deviation over seeds of every model's accuracies, also on swapped
images, and retention, paired differences from FT and from InstFree, majority, chance, and the paper's own numbers,
which are of an 11B model and are shares of right letters. ``--sweep sweep/mini_medmnist_tables`` runs the models on
BreastMNIST and PneumoniaMNIST, with one seed; the paper has no numbers of these. ``--sweep sweep/mini_alpha`` and
``sweep/mini_vectors`` vary one number of InstFree and compare with its default. ``--collect-only`` trains nothing
and takes what is finished. Further arguments override keys of the sweep.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

sys.path.append(str(Path(__file__).resolve().parent))

from paper_tables import estimate, heading, line, over_seeds, parse_with_overrides, percent, write

from medtune.config import load_config
from medtune.errors import DataError, MedtuneError
from medtune.evaluation.provenance import stamp
from medtune.evaluation.retention import COMPONENTS
from medtune.evaluation.scoring import paired_difference
from medtune.reporting.runs import Run, read_run
from medtune.sweep.config import SweepConfig, SweepRun, chains
from medtune.sweep.run import run_sweep

REFERENCES = ("ft", "instfree")
RESULTS = Path(__file__).parent / "results"
DRAWS = 1000

# Column WBCAtt of the paper's Tables 1, 2 and 4: percent, and the deviation over three seeds where it gives one.
PAPER: dict[str, tuple[float, float | None]] = {
    "base": (34.6, None),
    "ft": (61.7, 3.72),
    "instfree": (68.4, 0.61),
    "instfree_rs": (65.2, 1.39),
    "fix": (65.1, 0.97),
    "update": (63.6, 0.83),
    "instfree_bal": (63.4, None),
    "instfree_rs_blank": (57.9, None),
    "ft_rs": (62.0, None),
    "ft_rand": (27.5, None),
}
PAPER_NOTE = (
    "Llama-3.2-11B-Vision at 560 pixels; share of questions whose letter the official parser reads and finds right, "
    "which is multiple_choice/accuracy_micro here"
)


class Domain(NamedTuple):
    """What belongs to a sweep: the config of its data, the file of its result, the paper's numbers, its references."""

    prepare: str
    out: Path
    paper: dict[str, tuple[float, float | None]] = {}
    references: tuple[str, ...] = REFERENCES


SWEEP = "sweep/mini_tables"
DOMAINS = {
    SWEEP: Domain("prepare/wbcatt_official", RESULTS / "instfree_table.json", PAPER),
    "sweep/mini_medmnist_tables": Domain("prepare/medmnist_reports", RESULTS / "instfree_table_medmnist.json"),
    "sweep/mini_alpha": Domain("prepare/wbcatt_official", RESULTS / "instfree_alpha.json", references=("alpha_0.94",)),
    "sweep/mini_vectors": Domain(
        "prepare/wbcatt_official", RESULTS / "instfree_vectors.json", references=("vectors_8",)
    ),
}


class Measure(NamedTuple):
    """A number of a run: which verdicts, which column of them, over what their shares are averaged, on which images."""

    tasks: tuple[str, ...]
    column: str
    over: str | None
    swapped: bool = False


MEASURES: dict[str, Measure] = {
    **{
        f"{task}/{name}": Measure((task,), "correct", over)
        for task in ("open", "multiple_choice", "letter_likelihood", "yes_no")
        for name, over in (("accuracy_macro", "attribute"), ("accuracy_micro", None))
    },
    **{
        f"{task}/swapped_micro": Measure((task,), "correct", None, swapped=True) for task in ("open", "multiple_choice")
    },
    "retention": Measure(tuple(COMPONENTS), "in_format", "task"),
    "natural_descriptions": Measure(("description",), "in_format", None),
}
"""Every measure that a sweep may give; which ones it does depends on the protocols that it asks."""
BASELINES = ("majority_macro", "majority_micro", "chance_macro", "chance_micro")


@dataclass(frozen=True)
class Model:
    """A variant of the sweep with its finished runs by seed; the untuned base has one, of seed None."""

    name: str
    title: str
    runs: dict[int | None, Run]


def finished(config: SweepConfig) -> tuple[list[Model], list[str]]:
    """Read the runs that were scored.

    Returns:
        Models with at least one finished run, and the names of the chains that are missing.

    Raises:
        DataError: Nothing is finished, or two runs were not asked the same questions.
    """
    models: dict[str, Model] = {}
    missing: list[str] = []
    for chain in chains(config):
        if not (chain.folder / "results.json").is_file():
            missing.append(chain.folder.name)
            continue
        seed = chain.seed if chain.variant.train is not None else None
        model = models.setdefault(chain.variant.name, Model(chain.variant.name, chain.variant.title, {}))
        model.runs[seed] = _read(chain)
    if not models:
        raise DataError(f"{config.output_dir}: no chain of the sweep is finished; start without --collect-only")
    _same_questions([run for model in models.values() for run in model.runs.values()])
    return list(models.values()), missing


def _read(chain: SweepRun) -> Run:
    run = read_run(chain.folder, chain.title)
    if not run.verdicts:
        raise DataError(f"{chain.folder}: verdicts.csv is missing; run the evaluate recipe again")
    return run


def _same_questions(runs: Sequence[Run]) -> None:
    """Compare ids, right answers and images of every query with those of the first run."""
    keys = ("task", "attribute", "gold", "images", "swapped")
    first = {one: [row[key] for key in keys] for one, row in runs[0].verdicts.items()}
    for run in runs[1:]:
        if {one: [row[key] for key in keys] for one, row in run.verdicts.items()} != first:
            raise DataError(f"{run.folder} and {runs[0].folder} were asked different questions; evaluate them alike")


def measures(run: Run) -> dict[str, Measure]:
    """The measures of a run that was asked some of the protocols; retention is the mean over those that it has."""
    protocols, parts = run.results["protocols"], run.results["retention"]
    found = {name: one for name, one in MEASURES.items() if one.column == "correct" and _asked(one, protocols)}
    if parts:
        components = tuple(task for task in COMPONENTS if task in parts)
        found["retention"] = MEASURES["retention"]._replace(tasks=components)
    if "description" in parts:
        found["natural_descriptions"] = MEASURES["natural_descriptions"]
    return found


def _asked(measure: Measure, protocols: dict[str, Any]) -> bool:
    """Whether a run was asked the protocol of a measure, on the images that it is about."""
    task = measure.tasks[0]
    return task in protocols and (not measure.swapped or bool(protocols[task]["swapped"]))


def value(run: Run, name: str) -> float:
    """A measure of one run, as its results.json holds it."""
    if name == "retention":
        return run.results["retention"]["composite"]["value"]
    if name == "natural_descriptions":
        return run.results["retention"]["description"]["value"]
    task, metric = name.split("/")
    if MEASURES[name].swapped:
        return run.results["protocols"][task]["swapped"]["accuracy_micro"]["value"]
    return run.results["protocols"][task]["overall"][metric]["value"]


def spread(model: Model, name: str) -> dict[str, Any]:
    """Mean and standard deviation (n - 1) over the seeds of one measure; a single seed has no deviation."""
    values = [value(run, name) for run in model.runs.values()]
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "deviation": deviation, "seeds": len(values), "values": values}


def difference(model: Model, reference: Model, name: str, resamples: int = DRAWS) -> dict[str, Any] | None:
    """``model`` minus ``reference`` on the same questions, pooled over the seeds that both have.

    A seed is paired with the same seed, the untuned base with each. One draw of the bootstrap takes whole images with
    the answers of every seed, so the interval is about the choice of questions; how far seeds differ stands in
    ``by_seed``.

    Returns:
        The number with ``by_seed``, or None where the two have no seed in common.
    """
    measure = measures(next(iter(model.runs.values())))[name]
    values: list[float] = []
    cells: list[str] = []
    images: list[str] = []
    by_seed: dict[str, float] = {}
    for seed, (first, second) in _paired_runs(model, reference).items():
        swapped = str(int(measure.swapped))
        rows = [row for row in first.verdicts.values() if row["task"] in measure.tasks and row["swapped"] == swapped]
        ours = [float(row[measure.column]) - float(second.verdicts[row["id"]][measure.column]) for row in rows]
        values += ours
        cells += [row[measure.over] if measure.over else "" for row in rows]
        images += [row["images"] for row in rows]
        by_seed[str(seed)] = value(first, name) - value(second, name)
    if not values:
        return None
    number = paired_difference(values, cells, images, "", resamples, 0)
    text = f"{name} of {model.title} minus that of {reference.title}, paired by question and seed, mean over "
    text += f"{len(by_seed)} seeds; interval by a bootstrap over images, seeds as they are"
    return {**replace(number, definition=text).to_dict(), "by_seed": by_seed}


def _paired_runs(model: Model, reference: Model) -> dict[int | None, tuple[Run, Run]]:
    pairs = {}
    for seed in dict.fromkeys([*model.runs, *reference.runs]):
        first, second = (one.runs.get(seed, one.runs.get(None)) for one in (model, reference))
        if first is not None and second is not None and seed is not None:
            pairs[seed] = (first, second)
    return pairs


def table(config: SweepConfig, resamples: int = DRAWS, domain: Domain = DOMAINS[SWEEP]) -> dict[str, Any]:
    """Everything that the finished runs say, as plain JSON values, beside the paper's numbers if it has any."""
    models, missing = finished(config)
    by_name = {model.name: model for model in models}
    runs = [run for model in models for run in model.runs.values()]
    asked = measures(runs[0])
    rows = {}
    for model in models:
        against = {one: by_name[one] for one in domain.references if one in by_name and one != model.name}
        accuracy, deviation = domain.paper.get(model.name, (None, None))
        rows[model.name] = {
            "title": model.title,
            "measures": {name: spread(model, name) for name in asked},
            "differences": {
                one: {name: difference(model, reference, name, resamples) for name in asked}
                for one, reference in against.items()
            },
            **({"paper": {"accuracy": accuracy, "deviation": deviation}} if domain.paper else {}),
        }
    protocols = runs[0].results["protocols"]
    return {
        "models": rows,
        "missing": missing,
        "n": {"questions": runs[0].results["counts"]["questions"], "images": runs[0].results["counts"]["images"]},
        "baselines": {
            task: {name: protocols[task]["overall"][name]["value"] for name in BASELINES} for task in protocols
        },
        "retention_of": list(asked["retention"].tasks) if "retention" in asked else [],
        **({"paper_note": PAPER_NOTE} if domain.paper else {}),
        "references": [one for one in domain.references if one in by_name],
        "commits_of_runs": sorted({str(run.results["provenance"]["commit"]) for run in runs}),
    }


COLUMNS = {
    "open/accuracy_macro": "open, macro",
    "open/accuracy_micro": "open, micro",
    "multiple_choice/accuracy_micro": "letters",
    "yes_no/accuracy_micro": "yes/no",
    "retention": "retention",
    "natural_descriptions": "natural descriptions",
    "multiple_choice/swapped_micro": "letters, swapped images",
    "open/swapped_micro": "open, swapped images",
}
COMPARED = (
    "open/accuracy_macro",
    "open/accuracy_micro",
    "multiple_choice/accuracy_micro",
    "yes_no/accuracy_micro",
    "retention",
    "natural_descriptions",
)


def markdown(result: dict[str, Any]) -> str:
    """Two Markdown tables in percent: the models beside the paper (if it has numbers), and the paired differences."""
    names = [name for name in COLUMNS if name in next(iter(result["models"].values()))["measures"]]
    beside = ["paper"] if "paper_note" in result else []
    lines = [
        f"n = {result['n']['questions']:,} questions. Percent, mean ± standard deviation over seeds. Letters, yes/no, "
        f"swapped images: over questions. Retention: of {', '.join(result['retention_of']) or 'nothing'}."
        + (" Paper: letters, 11B." if beside else ""),
        "",
        *heading(["model", "seeds", *(COLUMNS[name] for name in names), *beside]),
    ]
    for row in result["models"].values():
        cells = [over_seeds(row["measures"][name]) for name in names]
        seeds = str(row["measures"][names[0]]["seeds"])
        paper = [percent(row[one]["accuracy"], row[one]["deviation"], unit=1.0) for one in beside]
        lines.append(line([row["title"], seeds, *cells, *paper]))
    for kind, title in (("majority", "majority of training"), ("chance", "chance")):
        cells = [_baseline_text(result["baselines"], name, kind) for name in names]
        lines.append(line([title, "", *cells, *("" for _ in beside)]))
    for reference in result["references"]:
        lines += _differences_text(result, reference, [name for name in COMPARED if name in names])
    if result["missing"]:
        lines += ["", f"Not finished: {', '.join(result['missing'])}."]
    return "\n".join(lines)


def _differences_text(result: dict[str, Any], reference: str, names: list[str]) -> list[str]:
    rows = {
        row["title"]: row["differences"][reference]
        for row in result["models"].values()
        if row["differences"].get(reference, {}).get(names[0])
    }
    if not rows:
        return []
    title = result["models"][reference]["title"]
    body = [line([name, *(estimate(numbers[one], "+") for one in names)]) for name, numbers in rows.items()]
    return ["", *heading([f"minus {title}", *(COLUMNS[name] for name in names)]), *body]


def _baseline_text(baselines: dict[str, dict[str, float]], name: str, kind: str) -> str:
    task, _, metric = name.partition("/")
    return percent(baselines[task][metric.replace("accuracy", kind)]) if metric.startswith("accuracy") else ""


def prepare(config: SweepConfig, prepared_by: str = DOMAINS[SWEEP].prepare) -> None:
    """Prepare the data of a sweep where they are not prepared, with the config of that name.

    Raises:
        MedtuneError: If that fails.
    """
    if (Path(config.prepared_dir) / "manifest.json").is_file():
        return
    from medtune.recipes.prepare import main as prepare_main

    arguments = ["--config", prepared_by, f"output_dir={config.prepared_dir}"]
    if "{prepared}" not in config.image_root:  # else the images are written by this step
        arguments.append(f"image_root={config.image_root}")
    if prepare_main(arguments):
        raise MedtuneError("the prepare step failed")


def parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, SweepConfig]:
    """The options, and the sweep that they ask for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sweep", choices=list(DOMAINS), default=SWEEP, help="the sweep, which decides the data")
    parser.add_argument("--collect-only", action="store_true", help="train nothing; take what is finished")
    parser.add_argument("--processes", type=int, help="chains at a time, each on one thread")
    parser.add_argument("--output-dir", help="folder of the runs")
    parser.add_argument("--prepared-dir", help="folder of the prepared data")
    parser.add_argument("--out", type=Path, help="the JSON file; by default a file of the sweep in benchmark/results")
    options = parse_with_overrides(parser, arguments)
    options.out = options.out or DOMAINS[options.sweep].out
    given = {name: getattr(options, name) for name in ("processes", "output_dir", "prepared_dir")}
    overrides = [f"{name}={one}" for name, one in given.items() if one is not None]
    return options, load_config(options.sweep, SweepConfig, [*overrides, *options.overrides])


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare, run or go on, collect, write and print."""
    try:
        options, config = parse(arguments)
        domain = DOMAINS[options.sweep]
        if not options.collect_only:
            prepare(config, domain.prepare)
            run_sweep(config)
        result = table(config, domain=domain)
    except MedtuneError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    result = {
        **stamp("benchmark/instfree_table.py", arguments or sys.argv[1:]),
        "sweep": options.sweep,
        **result,
    }
    write(options.out, result)
    print(markdown(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
