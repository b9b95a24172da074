"""The config of a sweep, and the runs and rows of the report that follow from it.

In overrides ``{sweep}`` stands for the sweep's folder, ``{run}`` and ``{seed}`` for those of the variant with its seed,
``{prepared}``, in ``image_root`` too, for the folder of the prepared data that are meant, and ``{images}`` for their
images. The steps of a variant know two more: ``{step:NAME}``, the folder of an earlier step, and ``{weights}``, the
weights of the last earlier step that wrote some. A name that is not known is an error.
"""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

PLACEHOLDER = re.compile(r"\{(\w+|step:[^{}]*)\}")
ONCE = ("sweep", "prepared", "images")
"""Placeholders of steps that run once, before the variants."""
OF_RUN = (*ONCE, "run", "seed")
"""Placeholders of a variant and of an ask."""
TAKEN = (".", "..", "weights", "checkpoints")
"""Names that no folder within a run's may have."""


@dataclass
class Step:
    """A recipe that runs before the variants, once, or as one step of a variant.

    Attributes:
        recipe: Its name, for example ``tsm``.
        config: Its config. A variant's step may leave it out where the recipe is the sweep's own, ``predict`` or
            ``evaluate``: then it has the sweep's config, data and overrides, as in a variant without steps.
        overrides: Of the config.
        name: Name of a variant's step, and of its folder in the run's; empty is the recipe's.
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
    """One way of asking a model.

    Attributes:
        name: Folder within the run's; the answers to a variant's first ask lie in the run's folder itself.
        title: What is added to the variant's title; may be empty.
        predict: Predict config in place of the sweep's.
        prepared_dir: Questions in place of the variant's.
        image_root: Their images.
        predict_overrides: After the sweep's.
        evaluate_overrides: After the sweep's.
        page: Name of the report that it stands in; empty is the sweep's own. Other questions belong on another page.
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
        train: Overrides of the training config; null is the untuned base, or what an ask's predict config names.
        steps: Recipes in place of training, predict and evaluate, in order; the report shows what the last ``evaluate``
            writes. A step's ``output_dir`` is chosen by the sweep. The variant is run with each seed if an override
            holds ``{seed}`` or a step has the sweep's own training config.
        x: The value that the sweep varies, for the plot against it.
        asks: Names of the ways in which it is asked; null is all of them.
        prepared_dir: Data in place of the sweep's, to tune on and to be asked.
        image_root: Their images.
    """

    name: str
    title: str
    train: list[str] | None = None
    x: float | None = None
    asks: list[str] | None = None
    prepared_dir: str | None = None
    image_root: str | None = None
    steps: list[Step] | None = None

    @property
    def one_seed(self) -> bool:
        """Whether another training seed would give the same model."""
        if self.steps is None:
            return self.train is None
        trained = any(not step.config and step.recipe not in ("predict", "evaluate") for step in self.steps)
        return not trained and not any("{seed}" in override for step in self.steps for override in step.overrides)

    def folder_of(self, place: int, run: Path) -> Path:
        """Return the folder of a step: the last ``evaluate`` writes into the run's own."""
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
    variants: list[Variant] = field(
        metadata={"help": "models to compare; the first is what the others are held against"}
    )
    recipe: str = field(default="instfree", metadata={"help": "training recipe"})
    evaluate: str = field(default="evaluate/default", metadata={"help": "evaluate config"})
    before: list[Step] = field(default_factory=list, metadata={"help": "recipes to run first, once, in order"})
    asks: list[EvalSetting] = field(
        default_factory=list, metadata={"help": "ways of asking each variant; empty is one way"}
    )
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
        self._check_asks()
        for variant in self.variants:
            self._check_steps(variant)
        self._check_placeholders()

    def _check_steps(self, variant: Variant) -> None:
        if variant.steps is None:
            return
        where, names = f"variant {variant.name}", [step.called for step in variant.steps]
        if variant.train is not None or variant.asks is not None:
            raise ValueError(f"{where}: steps stand in place of train and asks; leave those out")
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
            chosen = [one for one in step.overrides if re.match(r"output(_dir)?=", one)]
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
            check_placeholders(variant.train or [], OF_RUN, where)
            earlier: list[str] = []
            for step in variant.steps or []:
                known = [*OF_RUN, *(["weights"] if earlier else []), *(f"step:{name}" for name in earlier)]
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
        seed: Its training seed.
        folder: Its run's.
        title: Name in messages.
        suffix: What names the seed in titles; empty where there is one.
    """

    variant: Variant
    seed: int
    folder: Path
    title: str
    suffix: str = ""


@dataclass(frozen=True)
class ReportRow:
    """One row of the report: a chain's model, asked in one way.

    Attributes:
        chain: The model.
        ask: The way.
        folder: Where answers and results lie.
        title: Name in the report.
    """

    chain: SweepRun
    ask: EvalSetting
    folder: Path
    title: str


def check_placeholders(overrides: Iterable[str], known: Collection[str], where: str) -> None:
    """Refuse a placeholder that stands for nothing.

    Raises:
        ValueError: Naming it and those that are known.
    """
    for override in overrides:
        stray = [name for name in PLACEHOLDER.findall(override) if name not in known]
        if stray:
            listed = ", ".join(f"{{{name}}}" for name in known)
            raise ValueError(f"{where}: {{{stray[0]}}} in {override!r} stands for nothing; known are {listed}")


def asks_of(config: SweepConfig, variant: Variant) -> list[EvalSetting]:
    """The ways in which a variant is asked, in the sweep's order; one with steps of its own asks in its own way."""
    if variant.steps is not None:
        return [EvalSetting("steps")]
    every = config.asks or [EvalSetting("plain")]
    return [ask for ask in every if variant.asks is None or ask.name in variant.asks]


def row_title(variant: Variant, ask: EvalSetting) -> str:
    """A variant's title with an ask's, without the seed."""
    return f"{variant.title}, {ask.title}" if ask.title else variant.title


def chains(config: SweepConfig) -> list[SweepRun]:
    """Every chain of a sweep, variant by variant; the untuned base has no seed."""
    found = []
    for variant in config.variants:
        seeds = config.seeds[:1] if variant.one_seed else config.seeds
        for seed in seeds:
            alone = len(seeds) == 1
            name = variant.name if alone else f"{variant.name}_seed{seed}"
            suffix = "" if alone else f", seed {seed}"
            found.append(SweepRun(variant, seed, Path(config.output_dir) / name, variant.title + suffix, suffix))
    return found


def rows_of(config: SweepConfig, chain: SweepRun) -> list[ReportRow]:
    """Every row that a chain gives."""
    found = []
    for place, ask in enumerate(asks_of(config, chain.variant)):
        folder = chain.folder / ask.name if place else chain.folder
        found.append(ReportRow(chain, ask, folder, row_title(chain.variant, ask) + chain.suffix))
    return found


def data_of(config: SweepConfig, variant: Variant | None = None, ask: EvalSetting | None = None) -> tuple[str, str]:
    """Folder of prepared data and place of their images: the ask's, else the variant's, else the sweep's.

    Each of the two is looked for by itself, and ``{prepared}`` in the second stands for the first.
    """
    held = [one for one in (ask, variant, config) if one is not None]
    prepared = next(one.prepared_dir for one in held if one.prepared_dir)
    return prepared, next(one.image_root for one in held if one.image_root).replace("{prepared}", prepared)
