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
        classes: by index.
    """

    task: LabelTask
    classes: tuple[str, ...]


def label_sets(source: str) -> dict[str, LabelledSet]:
    """The sets of a prepared file, in the order in which they first appear.

    Args:
        source: JSON Lines of classification questions, as the ``prepare`` recipe writes them.

    Raises:
        DataError: if there is no such file, a row is no classification question, or two rows of a set name other
            classes.
    """
    if not Path(source).expanduser().is_file():
        raise DataError(
            f"The data file {source} does not exist, so the model's classes are not known; run the prepare recipe, or "
            "correct model.sets"
        )
    found: dict[str, LabelledSet] = {}
    samples = JsonlSource(source, None)
    for index in range(len(samples)):
        target = classification_target(samples[index])
        here = LabelledSet(target.task, target.classes)
        if found.setdefault(target.set, here) != here:
            raise DataError(f"{source}, row {index + 1}: the set {target.set!r} has other classes than in rows before")
    return found
