"""The config of a sweep, and the runs and rows of the report that follow from it.

In overrides ``{sweep}`` stands for the sweep's folder, ``{run}`` for that of the variant with its seed, and
``{prepared}``, in ``image_root`` too, for the folder of the prepared data that are meant.
"""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Step:
    """A recipe that runs before the variants, once.

    Attributes:
        recipe: Its name, for example ``tsm``.
        config: Its config.
        overrides: Of the config.
    """

    recipe: str
    config: str
    overrides: list[str] = field(default_factory=list)


@dataclass
class Ask:
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
    asks: list[Ask] = field(default_factory=list, metadata={"help": "ways of asking each variant; empty is one way"})
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

    def _check_asks(self) -> None:
        known = [ask.name for ask in self.asks]
        for name in [*known, *(ask.page for ask in self.asks)]:
            if "/" in name or name in (".", "..", "weights", "checkpoints"):
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
class Chain:
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
class Asked:
    """One row of the report: a chain's model, asked in one way.

    Attributes:
        chain: The model.
        ask: The way.
        folder: Where answers and results lie.
        title: Name in the report.
    """

    chain: Chain
    ask: Ask
    folder: Path
    title: str


def asks_of(config: SweepConfig, variant: Variant) -> list[Ask]:
    """The ways in which a variant is asked, in the sweep's order."""
    every = config.asks or [Ask("plain")]
    return [ask for ask in every if variant.asks is None or ask.name in variant.asks]


def row_title(variant: Variant, ask: Ask) -> str:
    """A variant's title with an ask's, without the seed."""
    return f"{variant.title}, {ask.title}" if ask.title else variant.title


def chains(config: SweepConfig) -> list[Chain]:
    """Every chain of a sweep, variant by variant; the untuned base has no seed."""
    found = []
    for variant in config.variants:
        seeds = config.seeds if variant.train is not None else config.seeds[:1]
        for seed in seeds:
            alone = len(seeds) == 1
            name = variant.name if alone else f"{variant.name}_seed{seed}"
            suffix = "" if alone else f", seed {seed}"
            found.append(Chain(variant, seed, Path(config.output_dir) / name, variant.title + suffix, suffix))
    return found


def rows_of(config: SweepConfig, chain: Chain) -> list[Asked]:
    """Every row that a chain gives."""
    found = []
    for place, ask in enumerate(asks_of(config, chain.variant)):
        folder = chain.folder / ask.name if place else chain.folder
        found.append(Asked(chain, ask, folder, row_title(chain.variant, ask) + chain.suffix))
    return found


def data_of(config: SweepConfig, variant: Variant | None = None, ask: Ask | None = None) -> tuple[str, str]:
    """Folder of prepared data and place of their images: the ask's, else the variant's, else the sweep's.

    Each of the two is looked for by itself, and ``{prepared}`` in the second stands for the first.
    """
    held = [one for one in (ask, variant, config) if one is not None]
    prepared = next(one.prepared_dir for one in held if one.prepared_dir)
    return prepared, next(one.image_root for one in held if one.image_root).replace("{prepared}", prepared)
