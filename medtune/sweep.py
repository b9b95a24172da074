"""Several variants of one experiment, tuned, asked and scored side by side, and one report of them all.

Every step is a recipe that can be run by itself; the commands are written to ``commands.txt``. A variant is a chain
(tune, predict, evaluate) in a process of its own. All three resume, so a killed sweep goes on when it is started again.
"""

import contextlib
import json
import multiprocessing
import shlex
import statistics
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from medtune.errors import MedtuneError

STATISTICS = ("accuracy_macro", "balanced_accuracy_macro")


@dataclass
class Variant:
    """One model of a sweep.

    Attributes:
        name: Folder of its run.
        title: Name in the report.
        train: Overrides of the training config; null is the untuned base.
        x: The value that the sweep varies, for the plot against it.
    """

    name: str
    title: str
    train: list[str] | None = None
    x: float | None = None


@dataclass
class SweepConfig:
    """Every key of a sweep."""

    output_dir: str = field(metadata={"help": "folder of the runs and of report.html"})
    train: str = field(metadata={"help": "training config that the variants override"})
    predict: str = field(metadata={"help": "predict config"})
    prepared_dir: str = field(metadata={"help": "folder that the prepare recipe wrote"})
    image_root: str = field(metadata={"help": "folder or .tar of the images"})
    variants: list[Variant] = field(
        metadata={"help": "models to compare; the first is what the others are held against"}
    )
    recipe: str = field(default="instfree", metadata={"help": "training recipe"})
    evaluate: str = field(default="evaluate/default", metadata={"help": "evaluate config"})
    center_crop: float = field(default=1.0, metadata={"help": "share of each image's sides that is kept"})
    axis: str = field(
        default="", metadata={"help": "name of the value that variants carry as x; draws accuracies against it"}
    )
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "training seeds of each tuned variant"})
    processes: int = field(default=2, metadata={"help": "variants at a time, each on one thread"})
    train_overrides: list[str] = field(default_factory=list, metadata={"help": "for every tuned variant"})
    predict_overrides: list[str] = field(default_factory=list, metadata={"help": "for every variant"})
    evaluate_overrides: list[str] = field(default_factory=list, metadata={"help": "for every variant"})
    title: str = field(default="medtune sweep", metadata={"help": "heading of the report"})
    note: str = field(default="", metadata={"help": "a sentence beneath it"})
    samples: int = field(default=8, metadata={"help": "sample questions on the page, with images and answers"})

    def __post_init__(self) -> None:
        """Refuse what cannot be compared."""
        names = [variant.name for variant in self.variants]
        if not names or len(set(names)) < len(names) or not self.seeds or self.processes < 1:
            raise ValueError("a sweep needs variants of different names, a seed and a process")
        places = [variant.x for variant in self.variants if variant.x is not None]
        if len(set(places)) < len(places) or bool(self.axis) != bool(places):
            raise ValueError("axis names what the variants carry as x: both or neither, and no x twice")


@dataclass(frozen=True)
class Chain:
    """One variant with one seed."""

    variant: Variant
    seed: int
    folder: Path
    title: str


def chains(config: SweepConfig) -> list[Chain]:
    """Every chain of a sweep, variant by variant; the untuned base has no seed."""
    found = []
    for variant in config.variants:
        seeds = config.seeds if variant.train is not None else config.seeds[:1]
        for seed in seeds:
            alone = len(seeds) == 1
            name = variant.name if alone else f"{variant.name}_seed{seed}"
            title = variant.title if alone else f"{variant.title}, seed {seed}"
            found.append(Chain(variant, seed, Path(config.output_dir) / name, title))
    return found


def run_recipe(folder: Path, name: str, arguments: list[str]) -> None:
    """Run one recipe with ``--config arguments[0]`` and overrides, and note the command that does the same.

    Raises:
        MedtuneError: If it fails; its own message stands where its output goes.
    """
    line = shlex.join(["tune", "run", f"medtune/recipes/{name}.py", "--config", *arguments])
    noted = folder / "commands.txt"
    if not noted.is_file() or line not in noted.read_text(encoding="utf-8").splitlines():
        with noted.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    print(f"$ {line}", flush=True)
    status = import_module(f"medtune.recipes.{name}").main(["--config", *arguments])
    if status:
        raise MedtuneError(f"the {name} step ended with status {status}")


def data_overrides(config: SweepConfig, node: str, file: str) -> list[str]:
    """Overrides that point a config's dataset node at a prepared file."""
    source = f"{node}.source={Path(config.prepared_dir) / file}"
    return [source, f"{node}.image_root={config.image_root}", f"{node}.center_crop={config.center_crop}"]


def run_chain(config: SweepConfig, chain: Chain) -> None:
    """Tune (unless it is the base), predict and evaluate; output goes to the chain's log."""
    root, run = Path(config.output_dir), chain.folder
    run.mkdir(parents=True, exist_ok=True)
    with _output_to(root / "logs" / f"{run.name}.log"):
        weights = []
        if chain.variant.train is not None:
            data = data_overrides(config, "dataset", "train.jsonl")
            own = [f"seed={chain.seed}", f"output_dir={run}", *config.train_overrides, *chain.variant.train]
            run_recipe(root, config.recipe, [config.train, *data, *own])
            weights = [f"checkpoint={run / 'weights'}"]
        asked = [*data_overrides(config, "questions", "test.jsonl"), *weights, f"output_dir={run}"]
        run_recipe(root, "predict", [config.predict, *asked, *config.predict_overrides])
        scored = [f"predictions={run / 'predictions.jsonl'}", f"prepared_dir={config.prepared_dir}", f"output={run}"]
        run_recipe(root, "evaluate", [config.evaluate, *scored, f"name='{chain.title}'", *config.evaluate_overrides])


@contextlib.contextmanager
def _output_to(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        yield


def run_sweep(config: SweepConfig, say: Callable[[str], None] = print) -> Path:
    """Run every chain and write the report.

    Args:
        config: The sweep.
        say: Told of each chain that is done.

    Returns:
        The HTML report; ``results.json``, ``results.csv`` and ``seeds.json`` stand beside it.

    Raises:
        MedtuneError: Naming the chain that failed and its log.
    """
    root = Path(config.output_dir)
    root.mkdir(parents=True, exist_ok=True)
    # Imported before forking, so that each chain starts at once.
    for name in (config.recipe, "predict", "evaluate"):
        import_module(f"medtune.recipes.{name}")
    every = chains(config)
    # Tuning takes longest, so it goes first.
    order = sorted(every, key=lambda chain: chain.variant.train is None)
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(config.processes, mp_context=context, initializer=_one_thread) as pool:
        waiting = {pool.submit(run_chain, config, chain): chain for chain in order}
        for future in as_completed(waiting):
            chain = waiting[future]
            if future.exception() is not None:
                pool.shutdown(cancel_futures=True)
                log = root / "logs" / f"{chain.folder.name}.log"
                raise MedtuneError(f"{chain.title}: {future.exception()}; see {log}") from future.exception()
            say(
                f"{chain.title}: tuned, asked and scored"
                if chain.variant.train is not None
                else f"{chain.title}: scored"
            )
    return _report(config, every)


def _one_thread() -> None:
    """Chains share the cores; more threads than idle cores make small models many times slower."""
    import torch

    torch.set_num_threads(1)


def _report(config: SweepConfig, every: list[Chain]) -> Path:
    from medtune.reporting.gallery import image_opener
    from medtune.reporting.report import write_report
    from medtune.reporting.seeds import seeds_section

    out = Path(config.output_dir) / "report.html"
    first = [next(chain for chain in every if chain.variant is variant) for variant in config.variants]
    images = image_opener(config.image_root)
    table = over_seeds(config, every)
    places = {variant.title: variant.x for variant in config.variants if variant.x is not None}
    write_report(
        [chain.folder for chain in first],
        out,
        title=config.title,
        note=config.note,
        samples=config.samples,
        open_image=images,
        extra=seeds_section(table, config.axis, places),
    )
    out.with_name("seeds.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    return out


def over_seeds(config: SweepConfig, every: list[Chain]) -> dict[str, Any]:
    """Mean and standard deviation over seeds of each variant's accuracies and retention.

    Returns:
        Variant title -> number name -> ``{mean, deviation, seeds, values}``; the deviation of one seed is null.
    """
    table: dict[str, Any] = {}
    for variant in config.variants:
        runs = [chain for chain in every if chain.variant is variant]
        numbers: dict[str, list[float]] = {}
        for chain in runs:
            results = json.loads((chain.folder / "results.json").read_text(encoding="utf-8"))
            for name, value in _headline(results).items():
                numbers.setdefault(name, []).append(value)
        table[variant.title] = {name: _spread(values) for name, values in numbers.items()}
    return table


def _headline(results: dict[str, Any]) -> dict[str, float]:
    numbers = {
        f"{protocol}/{name}": one["overall"][name]["value"]
        for protocol, one in results["protocols"].items()
        for name in STATISTICS
    }
    numbers["retention"] = results["retention"].get("composite", {}).get("value")
    return {name: value for name, value in numbers.items() if value is not None}


def _spread(values: list[float]) -> dict[str, Any]:
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "deviation": deviation, "seeds": len(values), "values": values}
