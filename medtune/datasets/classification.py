"""Shared code of the converters of classification sets: the instruction, the sample, the draw of rows."""

import math
import random
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from medtune.config import nearest
from medtune.data.class_weights import balanced_class_weights, given_class_weights
from medtune.data.labels import LABEL_SEPARATOR, NO_FINDING, LabelTask, Target, check_classes, label_text
from medtune.data.sample import Message, Sample
from medtune.datasets.drawing import check_limits
from medtune.errors import ConfigError

Template = Literal["full", "without_classes"]
Balance = Literal["undersample", "oversample"]
ClassWeights = Literal["balanced"] | Mapping[str, float] | None
Row = tuple[int, int]
"""A row of a split, and the number of its copy: 1, or more if a rare class is repeated."""


@dataclass(frozen=True)
class ClassSet:
    """A set of images with fixed classes, and the words of its instruction.

    Attributes:
        name: name of the set; ``meta.set`` of its samples.
        modality: what the images are, as in "the given {modality} image".
        task: ``multi_class``, ``multi_label`` or ``ordinal``.
        classes: all classes, by index.
        purpose: what the image is examined for.
        noun: noun for the classes, in the plural.
    """

    name: str
    modality: str
    task: LabelTask
    classes: tuple[str, ...]
    purpose: str = "for diagnosis"
    noun: str = "diagnoses"

    def __post_init__(self) -> None:
        check_classes(self.task, self.classes, f"the set {self.name!r}")

    @property
    def weighable(self) -> list[str]:
        """What a weight can be given for: the classes, and "no finding" if an image may have none."""
        return [*self.classes, *([NO_FINDING] if self.task == "multi_label" else [])]

    def instruction(self, template: Template = "full") -> str:
        """Return the user's turn (VITask, section 3; without the classes, section 5.4).

        The classes are separated by semicolons, because official class names contain commas.
        """
        text = f"Analyze the given {self.modality} image {self.purpose}."
        if template == "without_classes":
            return text
        text += f" The possible {self.noun} are: {LABEL_SEPARATOR.join(self.classes)}."
        return text + f' Name all that are present, or "{NO_FINDING}".' if self.task == "multi_label" else text

    def sample(self, id: str, image: str, indices: Sequence[int], template: Template = "full") -> Sample:
        """Return an image's instruction and answer, with the ``meta`` of a classification question."""
        target = Target(self.name, self.task, self.classes, tuple(indices))
        turns = (Message("user", self.instruction(template)), Message("assistant", target.text))
        return Sample(id, (image,), turns, target.to_meta())

    def text(self, indices: Sequence[int]) -> str:
        """Return the answer for these classes."""
        return label_text([self.classes[index] for index in indices])


@dataclass(frozen=True)
class Choice:
    """The template and the rows that are written: the options that all converters of classification sets share.

    Attributes:
        template: ``full`` lists the classes in the instruction, ``without_classes`` leaves them out.
        balance_train: see :func:`draw_rows`; applies to the training split only.
        limit_train: keep this many training images of each set, drawn at random after balancing.
        limit_questions: keep this many images of each set in val and in test, drawn at random.
        seed: seed of all draws.
        class_weights: weights of the training rows in the loss: ``balanced`` computes them from the frequency of the
            classes (:func:`medtune.data.class_weights.balanced_class_weights`), a mapping gives them by class.

    Raises:
        ConfigError: for an unknown option, a limit below 1, a weight that is not above 0, or classes that are to be
            balanced twice.
    """

    template: Template = "full"
    balance_train: Balance | None = None
    limit_train: int | None = None
    limit_questions: int | None = None
    seed: int = 0
    class_weights: ClassWeights = None

    def __post_init__(self) -> None:
        if self.template not in get_args(Template):
            raise ConfigError(f"template: {self.template!r} is unknown; use 'full' or 'without_classes'.")
        if self.balance_train not in (None, *get_args(Balance)):
            raise ConfigError(f"balance_train: {self.balance_train!r} is unknown; use undersample, oversample or null.")
        check_limits(limit_train=self.limit_train, limit_questions=self.limit_questions)
        given = self.class_weights
        if isinstance(given, str) and given != "balanced":
            raise ConfigError(
                f"class_weights: {given!r} is unknown; use balanced, a mapping from class to weight, or null."
            )
        if isinstance(given, Mapping) and not all(0 < weight < math.inf for weight in given.values()):
            raise ConfigError("class_weights: every weight must be a number above 0.")
        if given is not None and self.balance_train:
            raise ConfigError(
                "class_weights: balance_train already makes the classes equally frequent; use one of them."
            )

    def rows(self, words: ClassSet, split: str, labels: Sequence[tuple[int, ...]]) -> list[Row]:
        """Choose rows of a split of a set; ``labels`` are the right classes of each.

        Raises:
            ConfigError: if the training split of a multi-label set is to be balanced.
        """
        train = split == "train"
        if self.balance_train and words.task == "multi_label":
            raise ConfigError(
                f"balance_train: {words.name} has several labels an image; leave it out, or set it to null."
            )
        limit = self.limit_train if train else self.limit_questions
        return draw_rows(labels, self.balance_train if train else None, limit, self.seed, f"{words.name}/{split}")

    def weights(self, words: ClassSet, split: str, labels: Sequence[tuple[int, ...]]) -> list[float]:
        """Return the weight of each written row of a split of a set; 1 except in training.

        Raises:
            ConfigError: if a weight is given for a class that the set does not have.
        """
        if self.class_weights is None or split != "train":
            return [1.0] * len(labels)
        several = words.task == "multi_label"
        if isinstance(self.class_weights, str):
            return [float(w) for w in balanced_class_weights(labels, len(words.classes), several)]
        known = words.weighable
        for name in self.class_weights:
            if name not in known:
                raise ConfigError(f"class_weights: {words.name} has no class {name!r}; {nearest(name, known)}")
        names = [[words.classes[index] for index in row] for row in labels]
        return [float(w) for w in given_class_weights(names, self.class_weights, NO_FINDING)]


def draw_rows(
    labels: Sequence[Hashable], balance: str | None = None, limit: int | None = None, seed: int = 0, stream: str = ""
) -> list[Row]:
    """Choose rows of a split; they keep their order.

    Args:
        labels: the class of each row.
        balance: ``undersample`` keeps as many rows of each class as the rarest has, drawn at random; ``oversample``
            repeats rows until each class has as many as the most frequent: whole copies, then a random choice.
        limit: keep this many of the result, drawn at random.
        seed: seed of the draws.
        stream: name of the split, so that splits are drawn independently.

    Returns:
        (row, copy), copies counted from 1.
    """
    rows = [(row, 1) for row in range(len(labels))]
    if balance:
        groups: dict[Hashable, list[int]] = {}
        for row, label in enumerate(labels):
            groups.setdefault(label, []).append(row)
        sizes = [len(group) for group in groups.values()]
        wanted = min(sizes, default=0) if balance == "undersample" else max(sizes, default=0)
        rows = sorted(
            item for label, group in groups.items() for item in _filled(group, wanted, f"{seed}/{stream}/{label}")
        )
    if limit is None or limit >= len(rows):
        return rows
    places = random.Random(f"{seed}/{stream}").sample(range(len(rows)), limit)
    return [rows[place] for place in sorted(places)]


def row_id(id: str, copy: int) -> str:
    """Return the id of a row's copy: the row's id, followed by ``#2``, ``#3``, ... for repeats."""
    return id if copy == 1 else f"{id}#{copy}"


def commonest(texts: Iterable[str]) -> str:
    """Return the most frequent answer; of equally frequent ones the first in alphabetical order."""
    return min(Counter(texts).items(), key=lambda item: (-item[1], item[0]))[0]


def _filled(group: list[int], wanted: int, seed: str) -> list[Row]:
    whole, rest = divmod(wanted, len(group))
    drawn = random.Random(seed).sample(group, rest)
    return [(row, copy) for copy in range(1, whole + 1) for row in group] + [(row, whole + 1) for row in drawn]
