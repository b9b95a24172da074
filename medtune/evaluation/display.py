"""How a protocol's numbers and answers are shown. Reports, sweeps and summaries use it and depend on no protocol.

A display is plain data. The displays of the packaged protocols are looked up by name. The display of any other protocol
is written to ``results.json`` (key ``display``), so that a report can show it without the protocol's code.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from medtune.errors import DataError

Mark = Literal["correct", "in_format", "none"]
Confusion = Literal["none", "values", "classes"]


@dataclass(frozen=True)
class Column:
    """One number as a column of a table.

    Attributes:
        key: Name of the number, in the overall numbers or in those of one attribute.
        title: Heading of the column. Shares are shown in percent; give any other unit here.
        majority: Name of the majority baseline of this number; empty for none.
        chance: Name of the chance level of this number; empty for none.
        note: Name of a number that is shown in small letters below it in tables over seeds; empty for none.
        note_title: Title of the small number.
        against: Value that the interval is compared with for its colour if there is no baseline.
        sign: Whether the number is shown with its sign.
    """

    key: str
    title: str
    majority: str = ""
    chance: str = ""
    note: str = ""
    note_title: str = ""
    against: float | None = None
    sign: bool = False


@dataclass(frozen=True)
class Examples:
    """How a protocol's answers are shown on sample images.

    Attributes:
        question: Heading of a card for a question of this protocol; ``{prompt}`` and the keys of the row's ``meta`` are
            filled in.
        heading: Heading of the column of answers; ``{prompt}`` is filled in. Empty takes the protocol's title.
        mark: Column of the verdict that marks an answer as right; ``none`` marks nothing.
        measure: Per-sample number that is shown after the answer; empty for none.
        per_image: Whether the query belongs to the images and not to a single question about them.
        legend: Meaning of the mark if it needs an explanation, as half a sentence.
    """

    question: str = "{prompt}"
    heading: str = ""
    mark: Mark = "correct"
    measure: str = ""
    per_image: bool = False
    legend: str = ""

    @property
    def asks(self) -> bool:
        """Whether a row holds a question with its right answer."""
        return not self.per_image

    @property
    def ranks(self) -> bool:
        """Whether cases can be ranked by how many models get them wrong."""
        return not self.per_image and self.mark == "correct"


@dataclass(frozen=True)
class Densities:
    """A separate section for a protocol: numbers and two densities of each run, then a row for each set.

    Attributes:
        help: Sentences below the heading.
        columns: Numbers of a set; ``<key>_macro`` is the overall number.
        alt: Description of the plot in words.
        set_help: Sentences below the heading of the table by set.
        set_column: The number of that table.
        set_note: The number in small letters below it.
    """

    help: str
    columns: tuple[Column, ...]
    alt: str
    set_help: str
    set_column: Column
    set_note: Column


@dataclass(frozen=True)
class Scatter:
    """Two per-sample numbers drawn against each other: a panel for each run, a point for each answer.

    An answer that has the first number and lacks the second was not read: it is counted below its panel.

    Attributes:
        across: Per-sample number of the horizontal axis; ``gold`` takes the right value where it is a number.
        up: Per-sample number of the vertical axis; ``predicted`` takes the value that was read.
        title: Heading of the section.
        help: Sentences below the heading.
        across_title: Title of the horizontal axis.
        up_title: Title of the vertical axis.
        identity: Whether both have one unit: both axes have the same range, with the line on which they are equal.
        by_attribute: Whether each attribute has a section of its own, because their units differ.
        endings: Ends of the attributes whose answers are drawn; empty draws all.
    """

    across: str
    up: str
    title: str
    help: str
    across_title: str
    up_title: str
    identity: bool = False
    by_attribute: bool = False
    endings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Grouping:
    """Numbers of groups of questions: a section with a table and a chart, a row for each group and one for all.

    Attributes:
        key: Where the groups are in the protocol's results: ``attributes``, or a further key of its scores; each group
            has a name and numbers.
        title: Heading of the section.
        first: Heading of the groups' names.
        help: Sentences below the heading.
        column: The number of a group; ``<key>_micro`` of the column's key is that of all questions.
        notes: Numbers in small letters below it, with short titles.
    """

    key: str
    title: str
    first: str
    help: str
    column: Column
    notes: tuple[Column, ...] = ()


@dataclass(frozen=True)
class Display:
    """How one protocol is shown.

    Attributes:
        title: Its name in tables.
        headline: Its main numbers, the most important one first, with full titles; empty for a protocol without right
            answers.
        rank: Position among the protocols; the lowest rank is first.
        help: How it asks and what counts as right, in half a sentence.
        columns: Numbers of its own table; empty takes those of the headline.
        attribute: The number of one attribute (or set); None omits the table by attribute.
        notes: Numbers of one attribute that are shown in small letters below it, with short titles.
        notes_help: A sentence that explains the notes.
        titles: Title of a number in the list of definitions; other numbers take the title of their column.
        followed: Further overall numbers whose mean and deviation over seeds are saved, in addition to ``seeds``.
        seeds: Overall numbers shown over seeds, with full titles; empty takes those of the headline.
        followed_of_sets: Numbers of each attribute or set whose mean and deviation over seeds are saved.
        sets: Numbers shown over seeds with a column for each set.
        paired: Column of ``verdicts.csv`` for the paired difference: ``correct``, also used by McNemar's test, or
            ``measure:<name>``.
        confusion: ``values`` if answers are read as values of the attribute, ``classes`` if they are read as classes of
            a set; both give a confusion table. ``none`` gives no table.
        radar: Whether a radar chart over attributes is drawn.
        examples: How answers are shown on sample images; None does not show them.
        retention: Title of the share of answers in the requested form; empty if the protocol has no such share.
        densities: A separate section; None for none.
        scatter: Sections with two per-sample numbers drawn against each other.
        tasks: Whether the numbers of the headline are of different tasks; they get a chart with a panel for each.
        boxes: Ends of the attributes whose right and read values are boxes in pixels, as JSON: a list of boxes, or
            ``{class: boxes}``. They are drawn on sample images.
        side_by_side: Sentence above a section with all whole answers of all runs, side by side; empty for none.
            :meth:`~medtune.evaluation.protocols.base.EvaluationProtocol.remarks` adds a right answer and remarks.
        groupings: Sections with numbers of groups of questions.
    """

    title: str
    headline: tuple[Column, ...] = ()
    rank: int = 100
    help: str = ""
    columns: tuple[Column, ...] = ()
    attribute: Column | None = None
    notes: tuple[Column, ...] = ()
    notes_help: str = ""
    titles: Mapping[str, str] = field(default_factory=dict)
    followed: tuple[str, ...] = ()
    seeds: tuple[Column, ...] = ()
    followed_of_sets: tuple[str, ...] = ()
    sets: tuple[Column, ...] = ()
    paired: str = "correct"
    confusion: Confusion = "none"
    radar: bool = False
    examples: Examples | None = None
    retention: str = ""
    densities: Densities | None = None
    scatter: tuple[Scatter, ...] = ()
    tasks: bool = False
    boxes: tuple[str, ...] = ()
    side_by_side: str = ""
    groupings: tuple[Grouping, ...] = ()

    @property
    def table(self) -> tuple[Column, ...]:
        """Numbers of the protocol's own table."""
        return self.columns or self.headline

    @property
    def over_seeds(self) -> tuple[Column, ...]:
        """Numbers that are shown over seeds."""
        return self.seeds or self.headline

    @property
    def kept(self) -> tuple[str, ...]:
        """Overall numbers whose mean and deviation over seeds are saved."""
        return tuple(dict.fromkeys([*self.followed, *(column.key for column in self.over_seeds)]))

    @property
    def main(self) -> str:
        """Name of the first number of the headline; empty if there is none."""
        return self.headline[0].key if self.headline else ""

    def has(self, key: str) -> bool:
        """Return whether a number has a column in the protocol's own table or in the headline."""
        return any(column.key == key for column in (*self.table, *self.headline))

    def table_title(self, key: str) -> str:
        """Return the heading of a number in the protocol's own table, or its name."""
        return next((column.title for column in (*self.table, *self.headline) if column.key == key), key)

    def definition_title(self, key: str) -> str:
        """Return the title of a number in the list of definitions."""
        if key in self.titles:
            return self.titles[key]
        return f"{self.title}: {self.table_title(key)}"

    def to_dict(self) -> dict[str, Any]:
        """Return the display as plain JSON values."""
        return {**asdict(self), "titles": dict(self.titles)}

    @classmethod
    def from_dict(cls, node: Any, where: str = "results") -> "Display":
        """Read a display from plain values; keys of a later version are ignored.

        Raises:
            DataError: The values are not a display.
        """
        try:
            known = _known(cls, node)
            for name in ("headline", "columns", "notes", "seeds", "sets"):
                known[name] = tuple(Column(**_known(Column, column)) for column in known.get(name, ()))
            for name in ("followed", "followed_of_sets"):
                known[name] = tuple(known.get(name, ()))
            for name, kind in (("attribute", Column), ("examples", Examples)):
                known[name] = kind(**_known(kind, known[name])) if known.get(name) else None
            known["scatter"] = tuple(_scatter(one) for one in known.get("scatter", ()))
            known["groupings"] = tuple(_grouping(one) for one in known.get("groupings", ()))
            known["boxes"] = tuple(known.get("boxes", ()))
            known["densities"] = _densities(known.get("densities"))
            return cls(**known)
        except (TypeError, KeyError, AttributeError):
            raise DataError(f"{where}: 'display' describes no protocol; run the evaluate recipe again.") from None


def _known(kind: Any, node: Mapping[str, Any]) -> dict[str, Any]:
    names = {field.name for field in fields(kind)}
    return {key: value for key, value in node.items() if key in names}


def _scatter(node: Mapping[str, Any]) -> Scatter:
    known = _known(Scatter, node)
    return Scatter(**{**known, "endings": tuple(known.get("endings", ()))})


def _grouping(node: Mapping[str, Any]) -> Grouping:
    known = _known(Grouping, node)
    notes = tuple(Column(**_known(Column, column)) for column in known.get("notes", ()))
    return Grouping(**{**known, "column": Column(**_known(Column, known["column"])), "notes": notes})


def _densities(node: Mapping[str, Any] | None) -> Densities | None:
    if not node:
        return None
    known = _known(Densities, node)
    known["columns"] = tuple(Column(**_known(Column, column)) for column in known["columns"])
    for name in ("set_column", "set_note"):
        known[name] = Column(**_known(Column, known[name]))
    return Densities(**known)


ACCURACY_TITLES = {
    "accuracy_macro": "Accuracy, mean over attributes",
    "accuracy_micro": "Accuracy, over questions",
    "balanced_accuracy_macro": "Balanced accuracy",
    "unread": "Unread answers",
    "f1_macro": "Macro-F1, mean over sets",
    "out_of_vocabulary": "Out of vocabulary",
    "label_accuracy": "Accuracy per label",
    "label_accuracy_strict": "Accuracy per label, unread answers wrong",
    "chance_macro": "Chance, mean over attributes",
    "chance_micro": "Chance, over questions",
    "majority_macro": "Majority, mean over attributes",
    "majority_micro": "Majority, over questions",
    "majority_f1_macro": "Majority, macro-F1, mean over sets",
    "drop_macro": "Cost of the swap",
    "answer_differs": "Other right answer",
}
"""Titles of the numbers that protocols with right and wrong answers share."""
MICRO = Column("accuracy_micro", ACCURACY_TITLES["accuracy_micro"], "majority_micro", "chance_micro")


def accuracy_display(title: str, rank: int, help: str, **changes: Any) -> Display:
    """Return the display of a protocol whose answers are right or wrong, scored by ``score_protocol``.

    Args:
        title: Its name in tables.
        rank: Position among the protocols.
        help: How it asks and what counts as right.
        **changes: Fields that differ from the default.
    """
    balanced = "balanced_accuracy_macro"
    macro = Column("accuracy_macro", ACCURACY_TITLES["accuracy_macro"], "majority_macro", "chance_macro")
    main = Column("accuracy_macro", title, "majority_macro", "chance_macro", balanced, "balanced")
    fields: dict[str, Any] = {
        "headline": (main,),
        "columns": (macro, MICRO, *(Column(key, ACCURACY_TITLES[key]) for key in (balanced, "unread"))),
        "attribute": Column("accuracy", "accuracy", "majority", "chance"),
        "notes": (Column("balanced_accuracy", "balanced"),),
        "notes_help": "Balanced accuracy is the mean recall over the attribute's values.",
        "titles": ACCURACY_TITLES,
        "followed": ("accuracy_macro", balanced),
    }
    return Display(title=title, rank=rank, help=help, **{**fields, **changes})


def plain_display(name: str, numbers: Mapping[str, Any]) -> Display:
    """Return a display for an unknown protocol with results; its first number is the headline."""
    keys: Sequence[str] = list(numbers.get("overall", {}))
    return Display(name, tuple(Column(key, f"{name}, {key}") for key in keys[:1]))
