"""Your own labelled images as a classification set: a folder for each class, or a CSV of paths and labels."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from medtune.data.labels import LabelTask
from medtune.data.tables import CsvFormat
from medtune.datasets.classification import Balance, Choice, ClassWeights, Template
from medtune.datasets.labelled_folder import find_images
from medtune.datasets.labelled_images import Classes, merged, prepare_labelled
from medtune.datasets.labelled_table import ImageTable, Policy
from medtune.datasets.labelled_tasks import TaskOptions
from medtune.datasets.prepared import Prepared
from medtune.datasets.splitting import drawn, drawn_together, empty_splits
from medtune.errors import ConfigError


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
    fold_case: bool = False,
    class_weights: ClassWeights = None,
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
        fold_case: folders whose names differ by case or spaces are one class; otherwise a note names them.
        class_weights: see :class:`medtune.datasets.classification.Choice`.

    Raises:
        ConfigError: for an unknown option or a limit or share out of range.
        DataError: for a folder that is absent, empty, or not a class, and for split folders beside others.
    """
    if task == "multi_label":
        raise ConfigError("task: an image in one folder has one label; write a CSV for a multi-label set.")
    root = Path(images).expanduser()
    choice = Choice(template, balance_train, limit_train, limit_questions, seed, class_weights)
    found = find_images(root, classes)
    options = TaskOptions(set, modality, task, classes, purpose, noun, fold_case=fold_case)
    part = options.cleaned(set, found.rows, root)
    homes = drawn(part.rows, val_share, test_share, seed)
    parted = any(row.split for row in found.rows)
    return prepare_labelled(
        part.words,
        homes,
        choice,
        inputs={},
        options={"layout": "folder", "val_share": val_share, "test_share": test_share},
        summary={"files_that_are_no_images": found.others, "hidden_files": dict(sorted(found.hidden.items()))},
        notes=[
            *found.notes(),
            *part.notes,
            *([] if parted else empty_splits(homes, val_share, test_share)),
        ],
    )


def prepare_labelled_csv(
    table: str,
    set: str,
    modality: str,
    task: LabelTask | Mapping[str, LabelTask] = "multi_class",
    image_column: str = "path",
    label_column: str | Sequence[str] = "label",
    split_column: str | None = None,
    group_column: str | None = None,
    label_separator: str = "|",
    classes: Classes | Mapping[str, Classes] | None = None,
    purpose: str | Mapping[str, str] = "for diagnosis",
    noun: str | Mapping[str, str] = "diagnoses",
    template: Template = "full",
    val_share: float = 0.1,
    test_share: float = 0.2,
    balance_train: Balance | None = None,
    limit_train: int | None = None,
    limit_questions: int | None = None,
    seed: int = 0,
    class_columns: Sequence[str] | None = None,
    uncertain: Policy | None = None,
    blank: Policy | None = None,
    no_finding: Sequence[str] = (),
    fold_case: bool = False,
    image_suffix: str | None = None,
    delimiter: str = ",",
    encoding: str = "utf-8",
    class_weights: ClassWeights = None,
) -> Prepared:
    """Convert a table of image paths and labels to instructions.

    Args:
        table: the CSV file, with a header.
        set: name of the set.
        modality: what the images are.
        task: ``multi_class``, ``multi_label`` (a cell holds labels separated by ``label_separator``, or no label), or
            ``ordinal`` with ``classes`` in rising order.
        image_column: column of the paths, relative to the recipe's ``image_root``.
        label_column: column of the labels. With a list of columns each is a set of its own, named ``<set>_<column>``;
            an image is in the same split of all sets, and ``task``, ``classes``, ``purpose`` and ``noun`` may be
            mappings from column to value.
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
        class_columns: columns that are each named after a class and hold 1, 0, -1 (uncertain) or nothing, in place of
            ``label_column``: one column a finding, or one-hot columns if the task is ``multi_class``.
        uncertain: what -1 means: ``absent``, ``present``, or ``leave_out`` for the whole row; null refuses it.
        blank: what an empty cell means; null: in class columns and multi-label cells ``absent``, else an error.
        no_finding: labels that mean "no finding" in a multi-label set, in addition to these words in any case.
        fold_case: labels that differ by case or spaces are one class; otherwise a note names them.
        image_suffix: suffix of the files, for a column that names images without it, for example ``.png``.
        delimiter: character between two cells, for example ``;``.
        encoding: encoding of the text, for example ``cp1252``.
        class_weights: see :class:`medtune.datasets.classification.Choice`.

    Raises:
        ConfigError: for an unknown option or a limit or share out of range.
        DataError: for a missing column, an empty cell, an unknown label or split, an image that is listed twice, or a
            group in two splits.
    """
    choice = Choice(template, balance_train, limit_train, limit_questions, seed, class_weights)
    path = Path(table).expanduser()
    source = ImageTable(path, image_column, split_column, group_column, image_suffix, CsvFormat(delimiter, encoding))
    tasks = TaskOptions(set, modality, task, classes, purpose, noun, class_columns, tuple(no_finding), fold_case)
    rows, left_out = source.read(tasks.readers(label_column, label_separator, uncertain, blank))
    options = {
        **{"layout": "csv", "val_share": val_share, "test_share": test_share, "task": task, "uncertain": uncertain},
        **{"blank": blank, "no_finding": list(no_finding), "fold_case": fold_case},
    }
    found = {name: tasks.cleaned(name, group, path) for name, group in rows.items()}
    homes = drawn_together({name: part.rows for name, part in found.items()}, val_share, test_share, seed)
    parts = [
        prepare_labelled(
            part.words,
            homes[name],
            choice,
            inputs={"table": path},
            options=options,
            summary={"rows_left_out": left_out[name], "no_finding_beside_a_finding": part.contradictory},
            notes=[
                *part.notes,
                *([] if split_column else empty_splits(homes[name], val_share, test_share)),
                *([f"{name}: {left_out[name]} rows were left out (uncertain or blank)"] if left_out[name] else []),
            ],
        )
        for name, part in found.items()
    ]
    return merged(set, parts)
