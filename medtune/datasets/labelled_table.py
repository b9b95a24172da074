"""Reads labelled images from a CSV: labels in one cell, or one column for each class."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from medtune.data.tables import CsvFormat, read_table
from medtune.datasets.image_column import check_suffix, image_path
from medtune.datasets.labelled_folder import SPLIT_NAMES
from medtune.datasets.labelled_images import LabelledImage
from medtune.errors import ConfigError, DataError

Policy = Literal["absent", "present", "leave_out"]
"""What an unclear cell means: the finding is absent or present, or the row is left out."""
_BLANK = frozenset(("", "nan", "null", "n/a", "#n/a", "<na>"))
_VALUES = {"true": 1.0, "yes": 1.0, "false": 0.0, "no": 0.0}


class LabelReader(Protocol):
    """Reads the labels of a row."""

    @property
    def columns(self) -> Sequence[str]:
        """The columns that are read."""
        ...

    def labels(self, row: Mapping[str, str], where: str) -> tuple[str, ...] | None:
        """Return the labels as the data name them; None leaves the row out.

        Raises:
            DataError: for a cell that has no meaning; the message does not quote it.
        """
        ...


@dataclass(frozen=True)
class OneCell:
    """Labels in one cell.

    Attributes:
        column: the column.
        task: ``multi_label`` takes several labels from a cell.
        separator: text between them.
        blank: what an empty cell means; None is an error, or in a multi-label set no finding.
    """

    column: str
    task: str
    separator: str
    blank: Policy | None = None

    def __post_init__(self) -> None:
        if self.blank == "present" or (self.blank == "absent" and self.task != "multi_label"):
            raise ConfigError(f"blank: an empty cell of {self.column!r} names no label; use leave_out.")

    @property
    def columns(self) -> Sequence[str]:
        """The one column."""
        return (self.column,)

    def labels(self, row: Mapping[str, str], where: str) -> tuple[str, ...] | None:
        """Split the cell."""
        cell = row[self.column]
        if cell.casefold() in _BLANK:
            if self.blank == "leave_out":
                return None
            if self.task == "multi_label":
                return ()
            raise DataError(
                f"{where}: the cell of column {self.column!r} is empty; fill it in, remove the row, or set "
                "blank: leave_out."
            )
        names = [name.strip() for name in cell.split(self.separator)] if self.task == "multi_label" else [cell]
        return tuple(name for name in dict.fromkeys(names) if name)


@dataclass(frozen=True)
class ClassColumns:
    """One column for each class; a cell holds 1, 0, -1 (uncertain) or nothing, as in CheXpert's labels.

    Attributes:
        columns: the columns; their names are the classes.
        task: ``multi_class`` requires exactly one 1 in a row.
        uncertain: what -1 means; None is an error.
        blank: what an empty cell means (CheXpert: the report does not mention the finding).
    """

    columns: Sequence[str]
    task: str
    uncertain: Policy | None = None
    blank: Policy | None = "absent"

    def labels(self, row: Mapping[str, str], where: str) -> tuple[str, ...] | None:
        """Read all columns."""
        present = []
        for column in self.columns:
            policy = self._meaning(row[column], column, where)
            if policy == "leave_out":
                return None
            if policy == "present":
                present.append(column)
        if self.task != "multi_label" and len(present) != 1:
            raise DataError(f"{where}: {len(present)} of the class_columns are 1; a {self.task} image has exactly one.")
        return tuple(present)

    def _meaning(self, cell: str, column: str, where: str) -> Policy:
        if cell.casefold() in _BLANK:
            return self.blank or "absent"
        try:
            value = _VALUES[cell.casefold()] if cell.casefold() in _VALUES else float(cell.replace(",", "."))
        except ValueError:
            value = float("nan")
        if value in (0.0, 1.0):
            return "present" if value else "absent"
        if value != -1.0:
            raise DataError(f"{where}: the cell of column {column!r} must be 1, 0, -1 (uncertain) or empty.")
        if self.uncertain is None:
            raise DataError(
                f"{where}: the cell of column {column!r} is -1 (uncertain); say what that means, by "
                "uncertain: absent, present or leave_out."
            )
        return self.uncertain


@dataclass(frozen=True)
class ImageTable:
    """A table of images and what is known of them; see :func:`medtune.datasets.labelled.prepare_labelled_csv`.

    Attributes:
        path: the CSV file.
        image: column of the paths.
        split: column of train, val and test; None if there is none.
        group: column of groups; None if there is none.
        image_suffix: see :func:`medtune.datasets.image_column.image_path`.
        style: delimiter and encoding.
    """

    path: Path
    image: str
    split: str | None = None
    group: str | None = None
    image_suffix: str | None = None
    style: CsvFormat = CsvFormat()

    def read(self, readers: Mapping[str, LabelReader]) -> tuple[dict[str, list[LabelledImage]], Counter[str]]:
        """Read the labels of one or several sets in one pass.

        Args:
            readers: name of a set -> the reader of its labels.

        Returns:
            The rows of each set, and how many were left out of each.

        Raises:
            ConfigError: for a suffix that cannot be used.
            DataError: for a missing column, an empty cell, a cell without meaning, or an unknown split.
        """
        check_suffix(self.image_suffix)
        facts = [self.image, *(column for column in (self.split, self.group) if column)]
        labelled = [column for reader in readers.values() for column in reader.columns]
        rows: dict[str, list[LabelledImage]] = {name: [] for name in readers}
        left_out: Counter[str] = Counter()
        for where, row in read_table(self.path, [*facts, *labelled], self.style):
            for column in facts:
                if not row[column]:
                    raise DataError(f"{where}: the cell of column {column!r} is empty; fill it in, or remove the row.")
            image = image_path(row[self.image], self.image_suffix, where, self.image)
            home = SPLIT_NAMES.get(row[self.split].lower(), "") if self.split else ""
            if self.split and not home:
                raise DataError(f"{where}: the cell of column {self.split!r} must be train, val or test.")
            group = row[self.group] if self.group else ""
            for name, reader in readers.items():
                labels = reader.labels(row, where)
                if labels is None:
                    left_out[name] += 1
                else:
                    rows[name].append(LabelledImage(image, labels, where, home, group))
        return rows, left_out
