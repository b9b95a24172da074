"""The frontal, readable images of MIMIC-CXR, selected from the published tables, with about 80 bytes per image."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from medtune.data.tables import read_table
from medtune.errors import DataError

SPLITS = {"train": "train", "validate": "val", "test": "test"}
"""Official name of each split -> its name here."""

VIEWS = ("PA", "AP")
"""The frontal views; of a study's images, questions are about one of the view that comes first here."""

DICE = "Dice RCA (Mean)"
_NAME = 44  # letters of a dicom_id: five groups of eight hexadecimal digits
_ROW = np.dtype([("dicom", f"S{_NAME}"), ("study", np.int64), ("subject", np.int64), ("split", np.int8)])


class FrontalImages:
    """The images of reports and questions, sorted by ``dicom_id``.

    Args:
        metadata: ``mimic-cxr-2.0.0-metadata.csv``; columns ``dicom_id`` and ``ViewPosition``.
        split: ``mimic-cxr-2.0.0-split.csv``; columns ``dicom_id``, ``study_id``, ``subject_id`` and ``split``.
        chexmask: CheXmask's ``MIMIC-CXR-JPG.csv``; columns ``dicom_id`` and ``Dice RCA (Mean)``.
        least_dice: an image whose estimated Dice is below this counts as unreadable and is left out.

    Raises:
        DataError: if a table is absent or invalid, no image is left, or an image is in no split.
    """

    def __init__(self, metadata: Path, split: Path, chexmask: Path, least_dice: float) -> None:
        views = np.sort(np.fromiter(_views(metadata), dtype=[("dicom", f"S{_NAME}"), ("view", np.int8)]), order="dicom")
        whole = np.fromiter(_whole(chexmask, least_dice), dtype=f"S{_NAME}")
        self.frontal = len(views)
        views = views[np.isin(views["dicom"], whole)]
        rows = np.sort(np.fromiter(_splits(split, views["dicom"]), dtype=_ROW), order="dicom")
        if not len(rows) or not np.array_equal(rows["dicom"], views["dicom"]):
            raise DataError(
                f"{split.name}: {len(rows)} rows for the {len(views)} frontal images that pass {chexmask.name}; "
                "are the three tables of one version of MIMIC-CXR?"
            )
        self._rows = rows
        order = np.lexsort((rows["dicom"], views["view"], rows["study"]))
        self._studies, first = np.unique(rows["study"][order], return_index=True)
        self._asked = order[first]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._rows)

    def find(self, dicom: str) -> int | None:
        """Return the number of an image, or None if it is not among these."""
        return _position(self._rows["dicom"], dicom.encode())

    def of_study(self, study: int) -> int | None:
        """Return the number of the image that questions about a study use, or None if it has none."""
        at = _position(self._studies, study)
        return None if at is None else int(self._asked[at])

    def split(self, number: int) -> str:
        """Return an image's split: ``train``, ``val`` or ``test``."""
        return list(SPLITS.values())[self._rows["split"][number]]

    def dicom(self, number: int) -> str:
        """Return an image's ``dicom_id``."""
        return self._rows["dicom"][number].decode()

    def path(self, number: int, suffix: str) -> str:
        """Return an image's path below the published folder ``files``."""
        subject, study = self._rows["subject"][number], self._rows["study"][number]
        return f"p{str(subject)[:2]}/p{subject}/s{study}/{self.dicom(number)}{suffix}"

    def counts(self) -> dict[str, int]:
        """Return the number of images of each split."""
        return {name: int((self._rows["split"] == code).sum()) for code, name in enumerate(SPLITS.values())}


def whole_number(cell: str, column: str, where: str) -> int:
    """Read a number such as a ``study_id``.

    Raises:
        DataError: if the cell holds no number.
    """
    try:
        return int(cell.removesuffix(".0"))
    except ValueError:
        raise DataError(f"{where}: the cell of column {column!r} is no whole number; correct the row.") from None


def _views(path: Path) -> Iterator[tuple[bytes, int]]:
    for where, row in read_table(path, ["dicom_id", "ViewPosition"]):
        if row["ViewPosition"] in VIEWS:
            yield _name(row["dicom_id"], where), VIEWS.index(row["ViewPosition"])


def _whole(path: Path, least_dice: float) -> Iterator[bytes]:
    for where, row in read_table(path, ["dicom_id", DICE]):
        try:
            good = float(row[DICE]) >= least_dice
        except ValueError:
            raise DataError(f"{where}: the cell of column {DICE!r} is no number; correct the row.") from None
        if good:
            yield _name(row["dicom_id"], where)


def _splits(path: Path, wanted: np.ndarray) -> Iterator[tuple[bytes, int, int, int]]:
    codes = list(SPLITS)
    for where, row in read_table(path, ["dicom_id", "study_id", "subject_id", "split"]):
        name = _name(row["dicom_id"], where)
        if _position(wanted, name) is None:
            continue
        if row["split"] not in codes:
            raise DataError(f"{where}: the split is unknown; it must be one of {', '.join(codes)}.")
        study, subject = (whole_number(row[column], column, where) for column in ("study_id", "subject_id"))
        yield name, study, subject, codes.index(row["split"])


def _name(dicom: str, where: str) -> bytes:
    if not dicom or len(dicom) > _NAME or not dicom.isascii():
        raise DataError(f"{where}: the cell of column 'dicom_id' is no image of MIMIC-CXR; correct the row.")
    return dicom.encode()


def _position(ordered: np.ndarray, value: Any) -> int | None:
    at = int(np.searchsorted(ordered, value))
    return at if at < len(ordered) and ordered[at] == value else None
