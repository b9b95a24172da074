"""Class labels as text, and their description in a classification question's ``meta``."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from medtune.data.sample import Sample
from medtune.errors import DataError

LABEL_SEPARATOR = "; "
"""Separates the findings of one image; not a comma, because official class names contain commas."""
NO_FINDING = "no finding"
"""The answer for an image of a multi-label set without findings."""
PROTOCOL = "classification"
LabelTask = Literal["multi_class", "multi_label", "ordinal"]
TASKS: tuple[LabelTask, ...] = ("multi_class", "multi_label", "ordinal")


@dataclass(frozen=True)
class Target:
    """The classes of a classification question, and its right answer.

    Attributes:
        set: name of the set that the image belongs to.
        task: ``multi_class``, ``multi_label`` or ``ordinal`` (classes in rising order).
        classes: all classes of the set, by index.
        indices: the right ones; exactly one unless the task is ``multi_label``.
    """

    set: str
    task: LabelTask
    classes: tuple[str, ...]
    indices: tuple[int, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """The right classes by name, in the order of ``classes``."""
        return tuple(self.classes[index] for index in self.indices)

    @property
    def text(self) -> str:
        """The right answer, as it is trained on and expected."""
        return label_text(self.labels)

    def to_meta(self) -> dict[str, Any]:
        """Return the ``meta`` of a sample; :func:`classification_target` reads it back."""
        several = self.task == "multi_label"
        return {
            "set": self.set,
            "task": self.task,
            "classes": list(self.classes),
            "label": list(self.labels) if several else self.labels[0],
            "label_index": list(self.indices) if several else self.indices[0],
            "protocol": PROTOCOL,
        }


def label_text(names: Sequence[str]) -> str:
    """Write labels as an answer: joined by ``"; "``, or ``no finding`` if there is none."""
    return LABEL_SEPARATOR.join(names) or NO_FINDING


def check_classes(task: str, classes: Sequence[str], where: str) -> None:
    """Check that classes can be used in questions and are distinct.

    Raises:
        DataError: for fewer than two classes, a repeated class, or a class that a list of findings cannot contain.
    """
    if len(classes) < 2 or len(set(classes)) != len(classes):
        raise DataError(f"{where}: a set needs at least two classes, each with a text of its own.")
    unfit = [name for name in classes if ";" in name or "\n" in name or name == NO_FINDING]
    if task == "multi_label" and unfit:
        raise DataError(f"{where}: the class {unfit[0]!r} cannot be part of a list of findings; give it another text.")


def is_classification(sample: Sample) -> bool:
    """Return whether a sample is a classification question."""
    return sample.meta.get("protocol") == PROTOCOL


def classification_target(sample: Sample) -> Target:
    """Read and check a classification question's ``meta``.

    Raises:
        DataError: if something is missing or label, index and classes do not fit; the sample is named.
    """
    meta, where = sample.meta, f"question {sample.id!r}"
    name, task, classes = meta.get("set"), meta.get("task"), meta.get("classes")
    if not is_classification(sample) or not isinstance(name, str) or not name.strip():
        raise DataError(f"{where}: meta needs 'protocol': 'classification' and a text 'set'; prepare the data again.")
    if task not in TASKS:
        raise DataError(f"{where}: meta needs a 'task', one of {', '.join(TASKS)}, not {task!r}.")
    texts = isinstance(classes, list | tuple) and all(isinstance(name, str) and name.strip() for name in classes)
    if not isinstance(classes, list | tuple) or not texts:
        raise DataError(f"{where}: meta needs 'classes', a list of texts.")
    check_classes(task, classes, where)
    label, index = meta.get("label"), meta.get("label_index")
    labels, indices = (label, index) if task == "multi_label" else ([label], [index])
    if not isinstance(labels, list | tuple) or not isinstance(indices, list | tuple):
        raise DataError(f"{where}: 'label' and 'label_index' of a multi-label question must be lists.")
    known = all(isinstance(at, int) and not isinstance(at, bool) and 0 <= at < len(classes) for at in indices)
    if not known or [classes[at] for at in indices] != list(labels) or sorted(set(indices)) != list(indices):
        raise DataError(f"{where}: 'label' and 'label_index' do not name the same of its 'classes'.")
    return Target(name, task, tuple(classes), tuple(indices))
