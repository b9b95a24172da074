"""Labelled images from any listing as a classification set: splits, classes, samples."""

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from medtune.config import nearest
from medtune.data.labels import TASKS
from medtune.data.sample import Sample
from medtune.datasets.classification import Choice, ClassSet, commonest, row_id
from medtune.datasets.prepared import Prepared
from medtune.errors import ConfigError, DataError

SPLITS = ("train", "val", "test")
Classes = Sequence[str] | Mapping[str, str]
"""Classes in the order of their indices; a mapping gives each name in the data the text that is learned for it."""


@dataclass(frozen=True)
class LabelledImage:
    """One image.

    Attributes:
        image: path below the image root.
        labels: its labels as the data name them; exactly one, unless the set is multi-label.
        where: file and row, or folder, for messages.
        split: ``train``, ``val`` or ``test``; empty if it is still to be drawn.
        group: images of one group (a patient) stay in one split; empty if each image is its own group.
    """

    image: str
    labels: tuple[str, ...]
    where: str
    split: str = ""
    group: str = ""


def prepare_labelled(
    words: ClassSet,
    rows: Sequence[LabelledImage],
    choice: Choice,
    *,
    inputs: dict[str, Path],
    options: Mapping[str, Any],
    summary: Mapping[str, Any] | None = None,
    majority: str | None = None,
) -> Prepared:
    """Convert labelled images to samples.

    Args:
        words: the set; ``labels`` of the rows are among its classes.
        rows: the images, each with its split.
        choice: the rows that are written, and the template.
        inputs: see :class:`medtune.datasets.prepared.Prepared`.
        options: options for the manifest, in addition to the choice.
        summary: additional counts for the manifest.
        majority: the most frequent answer of training, if there is no training split to count in.

    Raises:
        ConfigError: if a multi-label set is to be balanced.
        DataError: for an unknown label, an image that is listed twice, or a group in two splits.
    """
    if words.task not in TASKS:
        raise ConfigError(f"task: {words.task!r} is unknown; use one of {', '.join(TASKS)}.")
    _check_homes(rows)
    groups = {split: [row for row in rows if row.split == split] for split in SPLITS}
    indices = {split: [_indices(row, words) for row in group] for split, group in groups.items()}
    trained = [words.text(right) for right in indices["train"]]
    majority = commonest(trained) if trained else majority
    return Prepared(
        name=words.name,
        splits={
            split: list(_samples(words, split, group, indices[split], choice))
            for split, group in groups.items()
            if group
        },
        inputs=inputs,
        options={**options, **asdict(choice)},
        tables={"training_majority": {words.name: majority} if majority else {}},
        summary={
            "classes": list(words.classes),
            "values": {s: dict(Counter(words.text(right) for right in group)) for s, group in indices.items() if group},
            **(summary or {}),
        },
    )


def class_texts(classes: Classes | None, task: str, rows: Sequence[LabelledImage], source: Path) -> tuple[str, ...]:
    """Return the classes of a set: those given, else the labels found in alphabetical order.

    Raises:
        ConfigError: for an ordinal set without classes, because their order would be alphabetical.
        DataError: if there are no rows.
    """
    if classes is None and task == "ordinal":
        raise ConfigError("classes: an ordinal set needs its classes in rising order.")
    if not rows:
        raise DataError(f"{source} holds no row; it needs at least one labelled image.")
    if classes is None:
        texts = sorted({label for row in rows for label in row.labels})
    else:
        texts = [str(name) for name in (classes.values() if isinstance(classes, Mapping) else classes)]
    return tuple(texts)


def renamed(rows: Iterable[LabelledImage], classes: Classes | None) -> list[LabelledImage]:
    """Replace the names in the data by the texts of the classes.

    Raises:
        DataError: for a name that is not in the mapping.
    """
    if not isinstance(classes, Mapping):
        return list(rows)
    texts = {str(name): str(text) for name, text in classes.items()}
    result = []
    for row in rows:
        for label in row.labels:
            if label not in texts:
                raise DataError(f"{row.where}: unknown label {label!r}; {nearest(label, list(texts))}")
        result.append(replace(row, labels=tuple(texts[label] for label in row.labels)))
    return result


def drawn(rows: Sequence[LabelledImage], val_share: float, test_share: float, seed: int) -> list[LabelledImage]:
    """Draw the splits of rows that have none: by class, with each group in a single split.

    Raises:
        ConfigError: for shares out of range.
    """
    if min(val_share, test_share) < 0 or val_share + test_share > 1:
        raise ConfigError(f"val_share {val_share} and test_share {test_share} must not be below 0 or above 1 in sum.")
    free = [row for row in rows if not row.split]
    groups: dict[str, list[LabelledImage]] = {}
    for row in free:
        groups.setdefault(row.group or row.image, []).append(row)
    strata: dict[tuple[str, ...], list[str]] = {}
    for name, members in sorted(groups.items()):
        strata.setdefault(members[0].labels, []).append(name)
    home: dict[str, str] = {}
    for labels, names in sorted(strata.items()):
        random.Random(f"{seed}/{'/'.join(labels)}").shuffle(names)
        tested, validated = round(test_share * len(names)), round(val_share * len(names))
        for place, name in enumerate(names):
            home[name] = "test" if place < tested else "val" if place < tested + validated else "train"
    return [row if row.split else replace(row, split=home[row.group or row.image]) for row in rows]


def _samples(
    words: ClassSet, split: str, group: Sequence[LabelledImage], indices: Sequence[tuple[int, ...]], choice: Choice
) -> Iterator[Sample]:
    for at, copy in choice.rows(words, split, indices):
        id = row_id(f"{words.name}/{split}/{group[at].image}", copy)
        yield words.sample(id, group[at].image, indices[at], choice.template)


def _indices(row: LabelledImage, words: ClassSet) -> tuple[int, ...]:
    for label in row.labels:
        if label not in words.classes:
            raise DataError(f"{row.where}: unknown label {label!r}; {nearest(label, list(words.classes))}")
    return tuple(sorted(words.classes.index(label) for label in row.labels))


def _check_homes(rows: Iterable[LabelledImage]) -> None:
    seen: dict[str, LabelledImage] = {}
    homes: dict[str, LabelledImage] = {}
    for row in rows:
        first = seen.setdefault(row.image, row)
        if first is not row:
            raise DataError(
                f"{row.where}: the image {row.image} was listed before, in {first.where}; keep one of them."
            )
        if row.group and homes.setdefault(row.group, row).split != row.split:
            other = homes[row.group]
            raise DataError(
                f"{row.where}: its group is in {row.split}, but in {other.split} by {other.where}; keep it in one."
            )
