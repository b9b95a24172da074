"""The sets of labels that a classifier is trained on, read from a prepared file."""

from dataclasses import dataclass
from pathlib import Path

from medtune.data.labels import LabelTask, classification_target
from medtune.data.source import JsonlSource
from medtune.errors import DataError


@dataclass(frozen=True)
class LabelledSet:
    """The classes of one set.

    Attributes:
        task: ``multi_class``, ``multi_label`` or ``ordinal``.
        classes: names of the classes, by index.
    """

    task: LabelTask
    classes: tuple[str, ...]


def label_sets(source: str) -> dict[str, LabelledSet]:
    """The sets of a prepared file, in the order in which they first appear.

    Args:
        source: JSON Lines of classification questions, as the ``prepare`` recipe writes them.

    Raises:
        DataError: if the file does not exist, a row is not a classification question, or two rows of one set name
            different classes.
    """
    if not Path(source).expanduser().is_file():
        raise DataError(
            f"The data file {source} does not exist, so the model's classes are not known; run the prepare recipe, or "
            "correct model.sets"
        )
    sets: dict[str, LabelledSet] = {}
    samples = JsonlSource(source, None)
    for index in range(len(samples)):
        target = classification_target(samples[index])
        labelled = LabelledSet(target.task, target.classes)
        if sets.setdefault(target.set, labelled) != labelled:
            raise DataError(f"{source}, row {index + 1}: the set {target.set!r} has other classes than in rows before")
    return sets
