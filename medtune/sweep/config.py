"""The config of a sweep, and its runs and the rows of its report.

Overrides may contain placeholders. ``{sweep}`` is the sweep's folder. ``{run}`` and ``{seed}`` are the folder and the
seed of the run. ``{prepared}`` is the folder of the prepared data in use; it is also replaced in ``image_root``.
``{images}`` is the place of their images. The steps of a variant have two more: ``{step:NAME}``, the folder of an
earlier step, and ``{weights}``, the weights of the last earlier step that wrote weights. A variant that needs others
has ``{run:NAME}``, the folder of their run with its seed. An unknown name is an error.
"""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

PLACEHOLDER = re.compile(r"\{(\w+|(?:step|run):[^{}]*)\}")
ONCE = ("sweep", "prepared", "images")
"""Placeholders in steps that run once, before the variants."""
OF_RUN = (*ONCE, "run", "seed")
"""Placeholders in a variant and in an ask."""
PARTS = ("before", "list")
"""Values of ``only`` that are no runs."""
TAKEN = (".", "..", "weights", "checkpoints")
"""Names that a folder inside a run's folder must not have."""


@dataclass
class Step:
    """A recipe that runs once before the variants, or as one step of a variant.

    Attributes:
        recipe: Name of the recipe, for example ``tsm``.
        config: Its config. A variant's step may leave it out if the recipe is the sweep's recipe, ``predict`` or
            ``evaluate``. The step then uses the sweep's config, data and overrides, as in a variant without steps.
        overrides: Overrides of the config.
        name: Name of a variant's step, and of its folder in the run's folder; empty uses the recipe's name.
    """

    recipe: str
    config: str = ""
    overrides: list[str] = field(default_factory=list)
    name: str = ""

    @property
    def called(self) -> str:
        """Name of the step."""
        return self.name or self.recipe


@dataclass
class EvalSetting:
    """One setting of prediction and evaluation for a trained model (an entry of ``asks``).

    Attributes:
        name: Folder inside the run's folder; the answers of a variant's first setting are in the run's folder itself.
        title: Text added to the variant's title; may be empty.
        predict: Predict config that replaces the sweep's.
        prepared_dir: Prepared questions that replace the variant's.
        image_root: Images of these questions.
        predict_overrides: Overrides of predict, applied after the sweep's.
        evaluate_overrides: Overrides of evaluate, applied after the sweep's.
        page: Name of the report page; empty is the sweep's main page. Different questions belong on a different page.
    """

    name: str
    title: str = ""
    predict: str | None = None
    prepared_dir: str | None = None
    image_root: str | None = None
    predict_overrides: list[str] = field(default_factory=list)
    evaluate_overrides: list[str] = field(default_factory=list)
    page: str = ""


@dataclass
class Variant:
    """One model of a sweep.

    Attributes:
        name: Folder of its run.
        title: Name in the report.
        train: Overrides of the training config; null is the untuned base model, or the model of the setting's predict
            config.
        steps: Recipes that replace train, predict and evaluate, in order. The report shows the results of the last
            ``evaluate``. The sweep chooses a step's ``output_dir``. The variant runs with each seed if an override
            contains ``{seed}`` or a step uses the sweep's training config.
        x: Value that the sweep varies, for the plot over it.
        asks: Names of the evaluation settings of this variant; null uses all of them.
        prepared_dir: Data that replace the sweep's, for training and for evaluation.
        image_root: Images of these data.
        needs: Names of variants that are done before this one, for example because it uses their adapters. Their
            folders are ``{run:NAME}``; a variant that has seeds is the run of the same seed.
    """

    name: str
    title: str
    train: list[str] | None = None
    x: float | None = None
    asks: list[str] | None = None
    prepared_dir: str | None = None
    image_root: str | None = None
    steps: list[Step] | None = None
    needs: list[str] = field(default_factory=list)

    @property
    def one_seed(self) -> bool:
        """Whether the variant itself does not depend on the training seed; see :class:`SweepRun` for its needs."""
        if self.steps is None:
            return self.train is None
        trained = any(not step.config and step.recipe not in ("predict", "evaluate") for step in self.steps)
        return not trained and not any("{seed}" in override for step in self.steps for override in step.overrides)

    def folder_of(self, place: int, run: Path) -> Path:
        """Return the folder of a step; the last ``evaluate`` writes into the run's folder itself."""
        assert self.steps is not None
        last = max(at for at, step in enumerate(self.steps) if step.recipe == "evaluate")
        return run if place == last else run / self.steps[place].called


@dataclass
class SweepConfig:
    """Every key of a sweep."""

    output_dir: str = field(metadata={"help": "folder of the runs and of report.html"})
    train: str = field(metadata={"help": "training config that the variants override"})
    predict: str = field(metadata={"help": "predict config"})
    prepared_dir: str = field(metadata={"help": "folder that the prepare recipe wrote"})
    image_root: str = field(metadata={"help": "folder or .tar of the images"})
    variants: list[Variant] = field(metadata={"help": "models to compare; the others are compared with the first"})
    recipe: str = field(default="instfree", metadata={"help": "training recipe"})
    evaluate: str = field(default="evaluate/default", metadata={"help": "evaluate config"})
    before: list[Step] = field(default_factory=list, metadata={"help": "recipes to run first, once, in order"})
    asks: list[EvalSetting] = field(
        default_factory=list, metadata={"help": "evaluation settings of each variant; empty: one default setting"}
    )
    center_crop: float = field(default=1.0, metadata={"help": "share of each image's sides that is kept"})
    axis: str = field(default="", metadata={"help": "name of the variants' value x; plots accuracies over it"})
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "training seeds of each tuned variant"})
    processes: int = field(default=2, metadata={"help": "number of variants that run in parallel, each on one thread"})
    train_overrides: list[str] = field(default_factory=list, metadata={"help": "for every tuned variant"})
    predict_overrides: list[str] = field(default_factory=list, metadata={"help": "for every variant"})
    evaluate_overrides: list[str] = field(default_factory=list, metadata={"help": "for every variant"})
    weights: Literal["weights", "best"] = field(
        default="weights",
        metadata={"help": "weights of a tuned variant to ask: the last ones, or the best by `monitor`"},
    )
    title: str = field(default="medtune sweep", metadata={"help": "heading of the report"})
    note: str = field(default="", metadata={"help": "a sentence below the heading"})
    samples: int = field(default=8, metadata={"help": "sample questions on the page, with images and answers"})
    only: str | None = field(
        default=None,
        metadata={"help": "VARIANT/SEED: do this run alone; before: the steps before them; list: print all. No report"},
    )
    collect: bool = field(default=False, metadata={"help": "only write the report of runs that were done with only"})

    def __post_init__(self) -> None:
        """Refuse invalid values and combinations."""
        names = [variant.name for variant in self.variants]
        if not names or len(set(names)) < len(names) or not self.seeds or self.processes < 1:
            raise ValueError("a sweep needs variants of different names, a seed and a process")
        places = [variant.x for variant in self.variants if variant.x is not None]
        if len(set(places)) < len(places) or bool(self.axis) != bool(places):
            raise ValueError("axis needs an x in the variants: give both or neither, and each x only once")
        self._check_asks()
        check_needs(self.variants)
        folders = [run.folder.name for run in chains(self)]
        if twice := [name for name in folders if folders.count(name) > 1]:
            raise ValueError(
                f"two runs would write to the folder {twice[0]!r}; give each seed once, and variants other names"
            )
        for variant in self.variants:
            self._check_steps(variant)
        self._check_placeholders()
        if self.only is not None:
            if self.collect:
                raise ValueError("only does one part and collect writes the report of all; leave one of them out")
            chosen(self)

    def _check_steps(self, variant: Variant) -> None:
        if variant.steps is None:
            return
        where, names = f"variant {variant.name}", [step.called for step in variant.steps]
        if variant.train is not None or variant.asks is not None:
            raise ValueError(f"{where}: steps replace train and asks; leave those out")
        if "evaluate" not in [step.recipe for step in variant.steps]:
            raise ValueError(f"{where}: its steps need an 'evaluate', whose results the report shows")
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"{where}: two steps are called {twice[0]!r}; give one another name")
        for step in variant.steps:
            if "/" in step.called or step.called in TAKEN:
                raise ValueError(f"{where}: {step.called!r} cannot be the name of a step's folder")
            if not step.config and step.recipe not in (self.recipe, "predict", "evaluate"):
                raise ValueError(f"{where}: step {step.called!r} needs a config")
            chosen = [override for override in step.overrides if re.match(r"output(_dir)?=", override)]
            if chosen:
                raise ValueError(
                    f"{where}: the sweep chooses the folder of step {step.called!r}; leave {chosen[0]!r} out"
                )

    def _check_placeholders(self) -> None:
        for step in self.before:
            check_placeholders(step.overrides, ONCE, f"before, {step.recipe}")
            if not step.config:
                raise ValueError(f"before: the step {step.recipe!r} needs a config")
        for name in ("train_overrides", "predict_overrides", "evaluate_overrides"):
            check_placeholders(getattr(self, name), OF_RUN, name)
        for ask in self.asks:
            check_placeholders([*ask.predict_overrides, *ask.evaluate_overrides], OF_RUN, f"ask {ask.name}")
        for variant in self.variants:
            where = f"variant {variant.name}"
            of_run = [*OF_RUN, *(f"run:{name}" for name in variant.needs)]
            check_placeholders(variant.train or [], of_run, where)
            earlier: list[str] = []
            for step in variant.steps or []:
                known = [*of_run, *(["weights"] if earlier else []), *(f"step:{name}" for name in earlier)]
                check_placeholders(step.overrides, known, f"{where}, step {step.called}")
                earlier.append(step.called)

    def _check_asks(self) -> None:
        known = [ask.name for ask in self.asks]
        for name in [*known, *(ask.page for ask in self.asks)]:
            if "/" in name or name in TAKEN:
                raise ValueError(f"asks: {name!r} cannot be the name of a folder within a run")
        if "" in known or len(set(known)) < len(known):
            raise ValueError("asks need different names, none of them empty")
        if self.axis and len(self.asks) > 1:
            raise ValueError("a plot against an axis shows one way of asking; leave axis out, or all asks but one")
        for variant in self.variants:
            stray = [name for name in variant.asks or [] if name not in known]
            if stray or variant.asks == []:
                raise ValueError(f"variant {variant.name}: asks {stray} are not among those of the sweep, {known}")
        titles = [row_title(variant, ask) for variant in self.variants for ask in asks_of(self, variant)]
        twice = sorted({title for title in titles if titles.count(title) > 1})
        if twice:
            raise ValueError(f"two rows of the report would be called {twice[0]!r}; give the asks different titles")


@dataclass(frozen=True)
class SweepRun:
    """One variant with one seed.

    Attributes:
        variant: The variant.
        seed: The training seed.
        folder: The run's folder.
        title: Name in messages.
        suffix: Text that names the seed in titles; empty if there is only one seed.
        one_seed: Whether the run does not depend on the training seed, nor does any run that it needs.
    """

    variant: Variant
    seed: int
    folder: Path
    title: str
    suffix: str = ""
    one_seed: bool = False


@dataclass(frozen=True)
class ReportRow:
    """One row of the report: the model of a run in one evaluation setting.

    Attributes:
        chain: The run.
        ask: The evaluation setting.
        folder: Folder of answers and results.
        title: Name in the report.
    """

    chain: SweepRun
    ask: EvalSetting
    folder: Path
    title: str


def check_needs(variants: Iterable[Variant]) -> None:
    """Refuse a need that is no variant, and variants that wait for each other.

    Raises:
        ValueError: Naming the variant.
    """
    needs = {variant.name: variant.needs for variant in variants}
    for name, wanted in needs.items():
        stray = [other for other in wanted if other not in needs]
        if stray:
            raise ValueError(f"variant {name}: needs {stray[0]!r}, which is no variant; there are {', '.join(needs)}")
    done: set[str] = set()
    while len(done) < len(needs):
        ready = {name for name, wanted in needs.items() if name not in done and done.issuperset(wanted)}
        if not ready:
            raise ValueError(f"variants {', '.join(sorted(needs.keys() - done))} need each other; none could begin")
        done |= ready


def check_placeholders(overrides: Iterable[str], known: Collection[str], where: str) -> None:
    """Refuse an unknown placeholder.

    Raises:
        ValueError: Naming it and the known ones.
    """
    for override in overrides:
        stray = [name for name in PLACEHOLDER.findall(override) if name not in known]
        if stray:
            listed = ", ".join(f"{{{name}}}" for name in known)
            raise ValueError(f"{where}: {{{stray[0]}}} in {override!r} is not a known placeholder; known are {listed}")


def asks_of(config: SweepConfig, variant: Variant) -> list[EvalSetting]:
    """Return a variant's evaluation settings in the sweep's order; a variant with steps has one default setting."""
    if variant.steps is not None:
        return [EvalSetting("steps")]
    every = config.asks or [EvalSetting("plain")]
    return [ask for ask in every if variant.asks is None or ask.name in variant.asks]


def row_title(variant: Variant, ask: EvalSetting) -> str:
    """Return a variant's title with the setting's title, without the seed."""
    return f"{variant.title}, {ask.title}" if ask.title else variant.title


def chains(config: SweepConfig) -> list[SweepRun]:
    """Return every run of a sweep, variant by variant; the untuned base has no seed."""
    runs = []
    for variant in config.variants:
        fixed = _has_one_seed(config, variant)
        seeds = config.seeds[:1] if fixed else config.seeds
        for seed in seeds:
            alone = len(seeds) == 1
            name = variant.name if alone else f"{variant.name}_seed{seed}"
            suffix = "" if alone else f", seed {seed}"
            runs.append(SweepRun(variant, seed, Path(config.output_dir) / name, variant.title + suffix, suffix, fixed))
    return runs


def _has_one_seed(config: SweepConfig, variant: Variant) -> bool:
    """Return whether neither a variant nor one that it needs depends on the training seed."""
    needed = [other for other in config.variants if other.name in variant.needs]
    return variant.one_seed and all(_has_one_seed(config, other) for other in needed)


def needed_runs(config: SweepConfig, chain: SweepRun) -> dict[str, SweepRun]:
    """Return the runs that a run needs, by the name of their variant."""
    every = [other for other in chains(config) if other.variant.name in chain.variant.needs]
    return {run.variant.name: run for run in every if run.seed == chain.seed or run.one_seed}


def task_name(chain: SweepRun) -> str:
    """Return the value of ``only`` for a run: ``VARIANT/SEED``."""
    return f"{chain.variant.name}/{chain.seed}"


def chosen(config: SweepConfig) -> SweepRun | None:
    """Return the run that ``only`` names; None for ``before`` and ``list``.

    Raises:
        ValueError: If there is no such run, with the names of all.
    """
    if config.only in PARTS:
        return None
    every = {task_name(chain): chain for chain in chains(config)}
    if config.only not in every:
        raise ValueError(f"only: there is no run {config.only!r}; there are {', '.join([*every, *PARTS])}")
    return every[config.only]


def rows_of(config: SweepConfig, chain: SweepRun) -> list[ReportRow]:
    """Return every row of a run."""
    rows = []
    for place, ask in enumerate(asks_of(config, chain.variant)):
        folder = chain.folder / ask.name if place else chain.folder
        rows.append(ReportRow(chain, ask, folder, row_title(chain.variant, ask) + chain.suffix))
    return rows


def data_of(config: SweepConfig, variant: Variant | None = None, ask: EvalSetting | None = None) -> tuple[str, str]:
    """Return the folder of prepared data and the place of their images: of the ask, else the variant, else the sweep.

    Each of the two is looked up independently. ``{prepared}`` in the second is replaced by the first.
    """
    levels = [level for level in (ask, variant, config) if level is not None]
    prepared = next(level.prepared_dir for level in levels if level.prepared_dir)
    return prepared, next(level.image_root for level in levels if level.image_root).replace("{prepared}", prepared)


def waves(config: SweepConfig) -> list[list[SweepRun]]:
    """Return all runs in groups: a run needs only runs of earlier groups, and stands in the first group it can."""
    left, done, found = chains(config), set[Path](), list[list[SweepRun]]()
    while left:
        ready = [run for run in left if done.issuperset(one.folder for one in needed_runs(config, run).values())]
        found.append(ready)
        done |= {run.folder for run in ready}
        left = [run for run in left if run.folder not in done]
    return found
