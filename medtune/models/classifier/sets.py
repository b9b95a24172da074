"""The sets of labels that a classifier is trained on, read from a prepared file."""

from collections import Counter
from collections.abc import Mapping
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


def positive_weights(source: str, sets: Mapping[str, LabelledSet]) -> dict[str, dict[str, float]]:
    """The weights that make each finding's presence and absence count alike: ``p_k = (n - n_k) / n_k``.

    Args:
        source: as for :func:`label_sets`.
        sets: the sets of the model.

    Returns:
        Multi-label set -> class -> weight, with n_k of the set's n rows that have class k; a class that no row or every
        row has is left out.

    Raises:
        DataError: as :func:`label_sets`.
    """
    total: Counter[str] = Counter()
    present: Counter[tuple[str, str]] = Counter()
    if not Path(source).expanduser().is_file():
        raise DataError(f"objective.pos_weight: the data file {source} does not exist; name the training rows")
    samples = JsonlSource(source, None)
    for index in range(len(samples)):
        target = classification_target(samples[index])
        total[target.set] += 1
        present.update((target.set, target.classes[place]) for place in target.indices)
    return {
        name: {
            label: (total[name] - count) / count
            for label in labelled.classes
            if 0 < (count := present[name, label]) < total[name]
        }
        for name, labelled in sets.items()
        if labelled.task == "multi_label"
    }


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
