"""Your own labelled images as a classification set: a folder for each class, or a CSV of paths and labels."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from medtune.data.labels import NO_FINDING, LabelTask
from medtune.data.tables import read_table
from medtune.datasets.classification import Balance, Choice, ClassSet, Template
from medtune.datasets.labelled_folder import SPLIT_NAMES, find_images
from medtune.datasets.labelled_images import (
    Classes,
    LabelledImage,
    class_texts,
    drawn,
    prepare_labelled,
    renamed,
)
from medtune.datasets.prepared import Prepared
from medtune.errors import ConfigError, DataError


def prepare_labelled_folder(
    images: str,
    set: str,
    modality: str,
    task: LabelTask = "multi_class",
    classes: Classes | None = None,
    purpose: str = "for diagnosis",
    noun: str = "diagnoses",
    template: Template = "full",
    val_share: float = 0.1,
    test_share: float = 0.2,
    balance_train: Balance | None = None,
    limit_train: int | None = None,
    limit_questions: int | None = None,
    seed: int = 0,
) -> Prepared:
    """Convert ``<class>/<image>`` or ``<split>/<class>/<image>`` to instructions.

    Args:
        images: the folder or tar file; also the recipe's ``image_root``. Split folders are ``train``, ``val`` and
            ``test``. Hidden and resource files are passed over, and counted.
        set: name of the set.
        modality: what the images are, as in "the given {modality} image".
        task: ``multi_class``, or ``ordinal`` with ``classes`` in rising order.
        classes: the class folders in order, or a mapping from folder to class text; null takes all folders in
            alphabetical order.
        purpose: see :class:`medtune.datasets.classification.ClassSet`.
        noun: see there.
        template: ``full`` lists the classes in the instruction, ``without_classes`` leaves them out.
        val_share: share of each class that is drawn for validation, if there are no split folders.
        test_share: share drawn for test; 1.0 makes the set an external test.
        balance_train: see :func:`medtune.datasets.classification.draw_rows`.
        limit_train: keep this many training images, drawn at random after balancing.
        limit_questions: keep this many images of val and of test, drawn at random.
        seed: seed of all draws.

    Raises:
        ConfigError: for an unknown option or a limit or share out of range.
        DataError: for a folder that is absent, empty, or not a class, and for split folders beside others.
    """
    if task == "multi_label":
        raise ConfigError("task: an image in one folder has one label; write a CSV for a multi-label set.")
    root = Path(images).expanduser()
    choice = Choice(template, balance_train, limit_train, limit_questions, seed)
    found = find_images(root, classes)
    prepared = prepare_labelled(
        ClassSet(set, modality, task, class_texts(classes, task, found.rows, root), purpose, noun),
        drawn(renamed(found.rows, classes), val_share, test_share, seed),
        choice,
        inputs={},
        options={"layout": "folder", "val_share": val_share, "test_share": test_share},
        summary={"files_that_are_no_images": found.others, "hidden_files": dict(sorted(found.hidden.items()))},
    )
    return replace(prepared, notes=found.notes())


def prepare_labelled_csv(
    table: str,
    set: str,
    modality: str,
    task: LabelTask = "multi_class",
    image_column: str = "path",
    label_column: str = "label",
    split_column: str | None = None,
    group_column: str | None = None,
    label_separator: str = "|",
    classes: Classes | None = None,
    purpose: str = "for diagnosis",
    noun: str = "diagnoses",
    template: Template = "full",
    val_share: float = 0.1,
    test_share: float = 0.2,
    balance_train: Balance | None = None,
    limit_train: int | None = None,
    limit_questions: int | None = None,
    seed: int = 0,
) -> Prepared:
    """Convert a table of image paths and labels to instructions.

    Args:
        table: the CSV file, UTF-8, with a header.
        set: name of the set.
        modality: what the images are.
        task: ``multi_class``, ``multi_label`` (a cell holds labels separated by ``label_separator``, or no label), or
            ``ordinal`` with ``classes`` in rising order.
        image_column: column of the paths, relative to the recipe's ``image_root``.
        label_column: column of the labels.
        split_column: column of train, val and test; null draws the splits.
        group_column: column of groups that must stay in one split, such as patients; null draws image by image.
        label_separator: see ``task``.
        classes: as in :func:`prepare_labelled_folder`.
        purpose: see there.
        noun: see there.
        template: see there.
        val_share: see there.
        test_share: see there.
        balance_train: see there.
        limit_train: see there.
        limit_questions: see there.
        seed: see there.

    Raises:
        ConfigError: for an unknown option or a limit or share out of range.
        DataError: for a missing column, an empty cell, an unknown label or split, an image that is listed twice, or a
            group in two splits.
    """
    choice = Choice(template, balance_train, limit_train, limit_questions, seed)
    path = Path(table).expanduser()
    rows = list(_read(path, image_column, label_column, split_column, group_column, label_separator, task))
    return prepare_labelled(
        ClassSet(set, modality, task, class_texts(classes, task, rows, path), purpose, noun),
        drawn(renamed(rows, classes), val_share, test_share, seed),
        choice,
        inputs={"table": path},
        options={"layout": "csv", "val_share": val_share, "test_share": test_share, "task": task},
    )


def _read(
    path: Path, image: str, label: str, split: str | None, group: str | None, separator: str, task: str
) -> Iterator[LabelledImage]:
    required = [image, label, *(column for column in (split, group) if column)]
    for where, row in read_table(path, required):
        for column in required:
            if not row[column] and not (column == label and task == "multi_label"):
                raise DataError(f"{where}: the cell of column {column!r} is empty; fill it in, or remove the row.")
        home = SPLIT_NAMES.get(row[split].lower(), "") if split else ""
        if split and not home:
            raise DataError(f"{where}: unknown split {row[split]!r}; use train, val or test.")
        cell = row[label]
        names = [name.strip() for name in cell.split(separator)] if task == "multi_label" else [cell]
        unique = [name for name in dict.fromkeys(names) if name]
        labels = tuple(name for name in unique if not (task == "multi_label" and name == NO_FINDING))
        yield LabelledImage(row[image], labels, where, home, row[group] if group else "")
