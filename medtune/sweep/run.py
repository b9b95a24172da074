"""Trains, predicts with and evaluates several variants of one experiment, and writes one report on all of them.

Every step is a recipe that can also be run alone; the commands are written to ``commands.txt``. The steps that all
variants need (``before``) run first, in order. Then each variant with each seed runs in its own process: train, then
predict and evaluate for each evaluation setting; or the variant's own steps. All recipes can resume, so a killed sweep
continues when it is started again.
"""

import contextlib
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from importlib import import_module
from pathlib import Path

from medtune.data.folders import claim
from medtune.errors import MedtuneError
from medtune.sweep.config import (
    PLACEHOLDER,
    EvalSetting,
    ReportRow,
    Step,
    SweepConfig,
    SweepRun,
    Variant,
    chains,
    chosen,
    data_of,
    needed_runs,
    rows_of,
    task_name,
    waves,
)
from medtune.sweep.processes import worker_pool

WRITES = ("commands.txt", "seeds.json", "seed_differences.json", "rows.json")  # the report claims its own


class RecipeEnded(MedtuneError):
    """A recipe of a sweep ended with a status other than 0: 128 + N after the signal N."""

    def __init__(self, name: str, status: int) -> None:
        super().__init__(f"the {name} step ended with status {status}")
        self.name, self.status = name, status

    def __reduce__(self) -> tuple[type, tuple[str, int]]:
        return type(self), (self.name, self.status)  # it comes from another process


def run_recipe(folder: Path, name: str, arguments: list[str]) -> None:
    """Run one recipe with ``--config arguments[0]`` and overrides, and record the equivalent command.

    Raises:
        RecipeEnded: If it fails; the recipe's own message is in its log.
    """
    line = shlex.join(["tune", "run", f"medtune/recipes/{name}.py", "--config", *arguments])
    noted = folder / "commands.txt"
    if not noted.is_file() or line not in noted.read_text(encoding="utf-8").splitlines():
        with noted.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    print(f"$ {line}", flush=True)
    status = import_module(f"medtune.recipes.{name}").main(["--config", *arguments])
    if status:
        raise RecipeEnded(name, status)


def data_overrides(
    config: SweepConfig, node: str, file: str, variant: Variant | None = None, ask: EvalSetting | None = None
) -> list[str]:
    """Return overrides that set a config's dataset node to a prepared file of the ask, the variant or the sweep."""
    prepared, images = data_of(config, variant, ask)
    return [
        f"{node}.source={Path(prepared) / file}",
        f"{node}.image_root={images}",
        f"{node}.center_crop={config.center_crop}",
    ]


def run_step(config: SweepConfig, step: Step) -> None:
    """Run a recipe that all variants need; its output goes to ``logs/before.log``."""
    root = Path(config.output_dir)
    with _output_to(root / "logs" / "before.log"):
        run_recipe(root, step.recipe, [step.config, *filled(step.overrides, config)])


def run_chain(config: SweepConfig, chain: SweepRun) -> None:
    """Train (except the base model), then predict and evaluate in each setting; the output goes to the run's log."""
    root, run = Path(config.output_dir), chain.folder
    run.mkdir(parents=True, exist_ok=True)
    with _output_to(root / "logs" / f"{run.name}.log"):
        if chain.variant.steps is not None:
            _run_steps(config, chain, chain.variant.steps)
            return
        weights = []
        if chain.variant.train is not None:
            overrides = [f"seed={chain.seed}", f"output_dir={run}", *config.train_overrides, *chain.variant.train]
            data = data_overrides(config, "dataset", "train.jsonl", chain.variant)
            run_recipe(root, config.recipe, [config.train, *data, *filled(overrides, config, chain)])
            weights = [f"checkpoint={run / config.weights}"]
        for row in rows_of(config, chain):
            _ask(config, row, weights)


def _ask(config: SweepConfig, row: ReportRow, weights: list[str]) -> None:
    root, ask, out, chain = Path(config.output_dir), row.ask, row.folder, row.chain
    asked = [*data_overrides(config, "questions", "test.jsonl", chain.variant, ask), *weights, f"output_dir={out}"]
    how = filled([*config.predict_overrides, *ask.predict_overrides], config, chain, ask)
    run_recipe(root, "predict", [ask.predict or config.predict, *asked, *how])
    prepared, _ = data_of(config, chain.variant, ask)
    scored = [f"predictions={out / 'predictions.jsonl'}", f"prepared_dir={prepared}", f"output={out}"]
    how = filled([*config.evaluate_overrides, *ask.evaluate_overrides], config, chain, ask)
    run_recipe(root, "evaluate", [config.evaluate, *scored, _name(row.title), *how])


def _name(title: str) -> str:
    """The override that names a result; a title may hold anything that is not YAML by itself, such as an apostrophe."""
    return "name='" + title.replace("'", "''") + "'"


def _run_steps(config: SweepConfig, chain: SweepRun, steps: list[Step]) -> None:
    """Run a variant's own steps, each in its folder; the last evaluate writes into the run's folder."""
    root, variant, earlier = Path(config.output_dir), chain.variant, dict[str, Path]()
    for place, step in enumerate(steps):
        folder = variant.folder_of(place, chain.folder)
        known = {f"step:{name}": str(path) for name, path in earlier.items()}
        if any("{weights}" in override for override in step.overrides):
            known["weights"] = str(_weights(earlier.values(), step))
        name, overrides = _default_config(config, chain, step, earlier)
        overrides += [f"{'output' if step.recipe == 'evaluate' else 'output_dir'}={folder}"]
        overrides += [_name(chain.title)] if step.recipe == "evaluate" else []
        run_recipe(
            root, step.recipe, [step.config or name, *overrides, *filled(step.overrides, config, chain, known=known)]
        )
        earlier[step.called] = folder


def _default_config(
    config: SweepConfig, chain: SweepRun, step: Step, earlier: Mapping[str, Path]
) -> tuple[str, list[str]]:
    """Return the sweep's config, data and overrides for a step without a config."""
    if step.config:
        return "", []
    if step.recipe == "predict":
        data = data_overrides(config, "questions", "test.jsonl", chain.variant)
        return config.predict, [*data, *filled(config.predict_overrides, config, chain)]
    if step.recipe == "evaluate":
        prepared, _ = data_of(config, chain.variant)
        answers = [path for path in earlier.values() if (path / "predictions.jsonl").is_file()]
        scored = [f"predictions={path / 'predictions.jsonl'}" for path in answers[-1:]]
        return config.evaluate, [*scored, f"prepared_dir={prepared}", *filled(config.evaluate_overrides, config, chain)]
    data = data_overrides(config, "dataset", "train.jsonl", chain.variant)
    return config.train, [*data, f"seed={chain.seed}", *filled(config.train_overrides, config, chain)]


def _weights(earlier: Iterable[Path], step: Step) -> Path:
    """Return the weights of the last earlier step that wrote weights.

    Raises:
        MedtuneError: If there are none.
    """
    written = [folder / "weights" for folder in earlier if (folder / "weights").exists()]
    if not written:
        raise MedtuneError(
            f"step {step.called!r} asks for {{weights}}, but no earlier step wrote any; see its overrides"
        )
    return written[-1]


def filled(
    overrides: Iterable[str],
    config: SweepConfig,
    chain: SweepRun | None = None,
    ask: EvalSetting | None = None,
    known: Mapping[str, str] | None = None,
) -> list[str]:
    """Return overrides with placeholders replaced; ``{run}`` and ``{seed}`` are available only with a run.

    Args:
        overrides: The overrides.
        config: The sweep.
        chain: The run (the variant with its seed).
        ask: The evaluation setting.
        known: More names and their values.
    """
    prepared, images = data_of(config, chain.variant if chain else None, ask)
    places = {"sweep": config.output_dir, "prepared": prepared, "images": images, **(known or {})}
    if chain is not None:
        places |= {"run": str(chain.folder), "seed": str(chain.seed)}
        places |= {f"run:{name}": str(needed.folder) for name, needed in needed_runs(config, chain).items()}
    return [PLACEHOLDER.sub(lambda match: places.get(match[1], match[0]), override) for override in overrides]


@contextlib.contextmanager
def _output_to(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        yield


def run_sweep(config: SweepConfig, say: Callable[[str], None] = print) -> Path:
    """Do every run and write the report.

    Args:
        config: The sweep.
        say: Called with a line for each step and run that is done.

    Returns:
        The HTML report; ``results.json``, ``results.csv`` and ``seeds.json`` are in the same folder. Other pages are
        in ``pages``, each in its own folder.

    Raises:
        MedtuneError: Naming the run that failed and its log.
    """
    from medtune.sweep.report import write_pages

    root = Path(config.output_dir)
    claim(root, "sweep", WRITES, _is_sweep)
    # Imported before forking, so that each run starts immediately.
    steps = [*config.before, *(step for variant in config.variants for step in variant.steps or [])]
    for name in dict.fromkeys([*(step.recipe for step in steps), config.recipe, "predict", "evaluate"]):
        import_module(f"medtune.recipes.{name}")
    every = chains(config)
    # Training takes longest, so it starts first.
    order = sorted(every, key=lambda chain: chain.variant.train is None and chain.variant.steps is None)
    with worker_pool(config.processes) as pool:
        for step in config.before:
            _wait(pool, pool.submit(run_step, config, step), f"{step.recipe} ({step.config})", root / "logs/before.log")
            say(f"{step.recipe} ({step.config}): done")
        for chain, future in _in_order(config, order, lambda chain: pool.submit(run_chain, config, chain)):
            _wait(pool, future, chain.title, root / "logs" / f"{chain.folder.name}.log")
            say(f"{chain.title}: {_done(chain.variant)}")
    return write_pages(config, every)


def _in_order(
    config: SweepConfig, order: Iterable[SweepRun], submit: Callable[[SweepRun], Future[None]]
) -> Iterator[tuple[SweepRun, Future[None]]]:
    """Submit each run as soon as those that it needs are done, and yield the runs as they end.

    The caller must not go on after a run that failed.
    """
    needs = {chain.folder: {run.folder for run in needed_runs(config, chain).values()} for chain in order}
    left, running, done = list(order), dict[Future[None], SweepRun](), set[Path]()
    while left or running:
        for chain in [chain for chain in left if needs[chain.folder] <= done]:
            left.remove(chain)
            running[submit(chain)] = chain
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            chain = running.pop(future)
            yield chain, future
            done.add(chain.folder)


def run_part(config: SweepConfig, say: Callable[[str], None] = print) -> int:
    """Do the part of a sweep that ``config.only`` names, in this process; several parts may be done at the same time.

    Args:
        config: The sweep.
        say: Called with a line for each step and run that is done; or for a list with ``wave N`` before each N runs
            that can be done at the same time, once those of earlier waves are done, and ``task VARIANT/SEED`` for each.

    Returns:
        0, or 128 + N if the signal N ended it; the same command goes on.

    Raises:
        MedtuneError: Naming what failed and its log.
    """
    root = Path(config.output_dir)
    if config.only == "list":
        for wave in waves(config):
            say(f"wave {len(wave)}")
            for run in wave:
                say(f"task {task_name(run)}")
        return 0
    claim(root, "sweep", WRITES, _is_sweep)
    chain = chosen(config)
    _refuse_early(config, chain)
    log = root / "logs" / (f"{chain.folder.name}.log" if chain else "before.log")
    try:
        if chain is not None:
            run_chain(config, chain)
            say(f"{chain.title}: {_done(chain.variant)}")
        for step in config.before if chain is None else []:
            run_step(config, step)
            say(f"{step.recipe} ({step.config}): done")
    except RecipeEnded as error:
        if error.status > 128:
            say(f"{config.only}: {error}; the same command goes on")
            return error.status
        raise MedtuneError(f"{config.only}: {error}; see {log}") from error
    return 0


def _refuse_early(config: SweepConfig, chain: SweepRun | None) -> None:
    """Refuse a run before those that it needs.

    Raises:
        MedtuneError: Naming them.
    """
    needed = needed_runs(config, chain).values() if chain else ()
    missing = [task_name(run) for run in needed if not (rows_of(config, run)[0].folder / "results.json").is_file()]
    if missing:
        raise MedtuneError(f"{config.only} needs {', '.join(missing)}; do each with only=NAME first")


def collect(config: SweepConfig) -> Path:
    """Write the report of a sweep whose runs were done one by one.

    Returns:
        As :func:`run_sweep`.

    Raises:
        MedtuneError: Naming the runs without results; nothing is written.
    """
    from medtune.sweep.report import write_pages

    every = chains(config)
    missing = [
        task_name(chain)
        for chain in every
        if not all((row.folder / "results.json").is_file() for row in rows_of(config, chain))
    ]
    if missing:
        raise MedtuneError(
            f"{len(missing)} of {len(every)} runs have no results yet: {', '.join(missing)}; do each with only=NAME"
        )
    claim(Path(config.output_dir), "sweep", WRITES, _is_sweep)
    return write_pages(config, every)


def _is_sweep(folder: Path) -> bool:
    """Return whether a folder without a record is a sweep's folder, or a demo has prepared its data there."""
    commands = folder / "commands.txt"
    return commands.is_file() and commands.read_text(encoding="utf-8", errors="replace").startswith("tune run medtune/")


def _done(variant: Variant) -> str:
    if variant.steps is not None:
        return ", ".join(step.called for step in variant.steps)
    return "evaluated" if variant.train is None else "trained, predicted and evaluated"


def _wait(pool: ProcessPoolExecutor, future: Future[None], title: str, log: Path) -> None:
    error = future.exception()
    if error is not None:
        pool.shutdown(cancel_futures=True)
        raise MedtuneError(f"{title}: {error}; see {log}") from error
