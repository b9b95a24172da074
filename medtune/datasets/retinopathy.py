"""IDRiD, MESSIDOR and APTOS: retinal photographs graded for diabetic retinopathy, as external tests of RetinaMNIST.

They use RetinaMNIST's instruction and classes (VITask, section 5.4). The tables name images in different ways: with a
suffix, without one, or with a suffix in another case than the file's. Images are therefore looked up in their folder.
"""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from medtune.data.image_names import hidden_part
from medtune.data.tables import read_table
from medtune.datasets.classification import Choice, Template
from medtune.datasets.image_column import SUFFIXES
from medtune.datasets.labelled_images import LabelledImage, prepare_labelled
from medtune.datasets.medmnist.door import GradeNames
from medtune.datasets.medmnist.facts import FACTS, GRADES, RETINOPATHY
from medtune.datasets.prepared import Prepared
from medtune.errors import ConfigError, DataError


def prepare_retinopathy(
    set: str,
    annotations: str,
    images: str,
    image_column: str,
    grade_column: str,
    gradable_column: str | None = None,
    image_suffix: str = ".jpg",
    template: Template = "full",
    grades: GradeNames = "words",
    training_majority: int | None = 0,
    limit_questions: int | None = None,
    seed: int = 0,
) -> Prepared:
    """Convert a table of grades 0 to 4 to a test split.

    Args:
        set: name of the set.
        annotations: the published table as CSV.
        images: folder of its images; also the recipe's ``image_root``.
        image_column: column of the images' names.
        grade_column: column of the grades.
        gradable_column: column that is 0 if the image could not be graded; such rows are left out and counted.
        image_suffix: suffix that the table's names lack, for the message about an image that is not in the folder.
        template: the one that the model was trained with: ``full`` or ``without_classes``.
        grades: the form that the model was trained with: ``words`` or ``numbers``.
        training_majority: the most frequent grade of the training set, for the baseline; 0 in RetinaMNIST.
        limit_questions: keep this many images, drawn at random.
        seed: seed of the draw.

    Raises:
        ConfigError: for an unknown option or a limit below 1.
        DataError: for a missing column, an empty cell, a grade out of range, an image that is listed twice, or two
            images with the same name.
    """
    if grades not in ("words", "numbers"):
        raise ConfigError(f"grades: {grades!r} is unknown; use 'words' or 'numbers'.")
    if training_majority is not None and not 0 <= training_majority < len(GRADES):
        raise ConfigError(f"training_majority is {training_majority}; it must be a grade from 0 to {len(GRADES) - 1}.")
    classes = RETINOPATHY if grades == "words" else GRADES
    words = replace(FACTS["retina"].words, name=set, classes=classes)
    path, folder = Path(annotations).expanduser(), Path(images).expanduser()
    left_out: Counter[str] = Counter()
    rows = list(_rows(path, _Finder(folder), image_column, grade_column, gradable_column, image_suffix, left_out))
    if not rows:
        raise DataError(f"{path} holds no graded image; give the table as its owners ship it.")
    return prepare_labelled(
        words,
        [replace(row, labels=(classes[int(row.labels[0])],)) for row in rows],
        Choice(template, limit_questions=limit_questions, seed=seed),
        inputs={"annotations": path},
        options={"grades": grades, "training_majority": training_majority},
        summary={"rows_without_a_grade": left_out["ungradable"]},
        majority=None if training_majority is None else classes[training_majority],
    )


def _rows(
    path: Path,
    finder: "_Finder",
    image_column: str,
    grade_column: str,
    gradable_column: str | None,
    suffix: str,
    left_out: Counter[str],
) -> Iterator[LabelledImage]:
    columns = [image_column, grade_column, *([gradable_column] if gradable_column else [])]
    for where, row in read_table(path, columns):
        if gradable_column and row[gradable_column] in ("0", "0.0"):
            left_out["ungradable"] += 1
            continue
        for column in (image_column, grade_column):
            if not row[column]:
                raise DataError(f"{where}: the cell of column {column!r} is empty; fill it in, or remove the row.")
        grade = row[grade_column].removesuffix(".0")
        if grade not in GRADES:
            raise DataError(
                f"{where}: the grade is out of range; column {grade_column!r} must hold 0 to 4 "
                "(the international scale of diabetic retinopathy)."
            )
        yield LabelledImage(finder.find(row[image_column], suffix, where), (grade,), where, "test")


class _Finder:
    """Finds the files that a table names, with or without their suffix, in upper or lower case."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise DataError(f"The folder of images {folder} does not exist; correct 'images'.")
        self._files: dict[str, list[str]] = {}
        for base, folders, names in os.walk(folder):
            folders.sort()
            for name in sorted(names):
                file = Path(base) / name
                relative = file.relative_to(folder).as_posix()
                if file.suffix.lower() in SUFFIXES and hidden_part(relative) is None:
                    for key in {name.lower(), file.stem.lower(), relative.lower()}:
                        self._files.setdefault(key, []).append(relative)

    def find(self, name: str, suffix: str, where: str) -> str:
        """Return the path of a named image below the folder; the recipe reports images that do not exist."""
        found = self._files.get(name.lower()) or self._files.get(f"{name}{suffix}".lower()) or []
        stem = Path(name).stem.lower()
        found = found or (self._files.get(stem, []) if Path(name).suffix.lower() in SUFFIXES else [])
        if len(found) > 1:
            raise DataError(
                f"{where}: {len(found)} images are called {name} ({found[0]}, {found[1]}); give the folder that "
                "holds the images of this table alone."
            )
        if found:
            return found[0]
        return name if Path(name).suffix.lower() in SUFFIXES else f"{name}{suffix}"
