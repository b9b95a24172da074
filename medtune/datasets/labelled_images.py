"""Labelled images from any listing as a classification set: splits, classes, samples."""

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
MANY_CLASSES = 50
"""With more classes than this, and more than half as many as rows, the column is probably not that of the labels."""
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
    notes: Sequence[str] = (),
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
        notes: what the user should know about the data.

    Raises:
        ConfigError: if a multi-label set is to be balanced, or a weight is given for an unknown class.
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
        notes=list(notes),
    )


def merged(name: str, parts: Sequence[Prepared]) -> Prepared:
    """Return several sets as one data set: the rows of all in each split, set after set.

    Args:
        name: name of the data set.
        parts: the sets, each with a name of its own.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    return Prepared(
        name=name,
        splits={
            split: [sample for part in parts for sample in part.splits.get(split, ())]
            for split in SPLITS
            if any(split in part.splits for part in parts)
        },
        inputs=first.inputs,
        options=first.options,
        tables={"training_majority": {k: v for part in parts for k, v in part.tables["training_majority"].items()}},
        summary={"sets": {part.name: part.summary for part in parts}},
        notes=list(dict.fromkeys(note for part in parts for note in part.notes)),
    )


def class_texts(classes: Classes | None, task: str, rows: Sequence[LabelledImage], source: Path) -> tuple[str, ...]:
    """Return the classes of a set: those given, else the labels found in alphabetical order.

    Raises:
        ConfigError: for an ordinal set without classes, because their order would be alphabetical.
        DataError: if there are no rows, or if the labels look like the contents of another column: most rows have a
            label of their own.
    """
    if classes is None and task == "ordinal":
        raise ConfigError("classes: an ordinal set needs its classes in rising order.")
    if not rows:
        raise DataError(f"{source} holds no row; it needs at least one labelled image.")
    if classes is None:
        texts = sorted({label for row in rows for label in row.labels})
        if len(texts) > MANY_CLASSES and 2 * len(texts) > len(rows):
            raise DataError(
                f"{source} has {len(texts)} different labels in {len(rows)} rows; is this the column of the labels? If "
                "it is, list them in classes."
            )
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
                raise DataError(_unknown(row, label, list(texts)))
        result.append(replace(row, labels=tuple(texts[label] for label in row.labels)))
    return result


def _samples(
    words: ClassSet, split: str, group: Sequence[LabelledImage], indices: Sequence[tuple[int, ...]], choice: Choice
) -> Iterator[Sample]:
    rows = choice.rows(words, split, indices)
    weights = choice.weights(words, split, [indices[at] for at, _ in rows])
    for (at, copy), weight in zip(rows, weights, strict=True):
        id = row_id(f"{words.name}/{split}/{group[at].image}", copy)
        yield replace(words.sample(id, group[at].image, indices[at], choice.template), weight=weight)


def _indices(row: LabelledImage, words: ClassSet) -> tuple[int, ...]:
    for label in row.labels:
        if label not in words.classes:
            raise DataError(_unknown(row, label, list(words.classes)))
    return tuple(sorted(words.classes.index(label) for label in row.labels))


def _unknown(row: LabelledImage, label: str, known: list[str]) -> str:
    """Return a message that names the nearest class, but not the label, which may be a cell of the wrong column."""
    case = next((name for name in known if name.casefold() == label.casefold()), None)
    hint = f"it differs from {case!r} by case (fold_case: true)" if case else nearest(label, known)
    return f"{row.where}: a label is none of the classes; {hint}"


def _check_homes(rows: Iterable[LabelledImage]) -> None:
    seen: dict[str, LabelledImage] = {}
    homes: dict[str, LabelledImage] = {}
    for row in rows:
        first = seen.setdefault(row.image, row)
        if first is not row:
            raise DataError(f"{row.where}: its image was listed before, in {first.where}; keep one of them.")
        if row.group and homes.setdefault(row.group, row).split != row.split:
            other = homes[row.group]
            raise DataError(
                f"{row.where}: its group is in {row.split}, but in {other.split} by {other.where}; keep it in one."
            )
