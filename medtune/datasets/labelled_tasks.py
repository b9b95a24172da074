"""The classes of one or several sets that are read from one listing of labelled images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medtune.config import nearest
from medtune.data.labels import LabelTask
from medtune.datasets.classification import ClassSet
from medtune.datasets.label_names import fold, folded, no_finding_names, spelling_note, without_no_finding
from medtune.datasets.labelled_images import Classes, LabelledImage, class_texts, renamed
from medtune.datasets.labelled_table import ClassColumns, LabelReader, OneCell, Policy
from medtune.errors import ConfigError


@dataclass(frozen=True)
class Cleaned:
    """The rows of a set, with the texts of its classes as labels.

    Attributes:
        words: the set.
        rows: its rows.
        contradictory: rows that say "no finding" beside a finding.
        notes: what the user should know.
    """

    words: ClassSet
    rows: list[LabelledImage]
    contradictory: int
    notes: list[str]


@dataclass
class TaskOptions:
    """Options of the sets of a listing; see :func:`medtune.datasets.labelled.prepare_labelled_csv`.

    ``task``, ``classes``, ``purpose`` and ``noun`` may be mappings by column if there are several label columns.
    """

    set: str
    modality: str
    task: LabelTask | Mapping[str, LabelTask]
    classes: Classes | Mapping[str, Classes] | None
    purpose: str | Mapping[str, str]
    noun: str | Mapping[str, str]
    class_columns: Sequence[str] | None = None
    no_finding: tuple[str, ...] = ()
    fold_case: bool = False

    def __post_init__(self) -> None:
        self._columns: dict[str, str] = {}

    def readers(
        self, label_column: str | Sequence[str], separator: str, uncertain: Policy | None, blank: Policy | None
    ) -> dict[str, LabelReader]:
        """Return the reader of each set.

        Raises:
            ConfigError: for options that do not fit each other.
        """
        if self.class_columns is not None:
            if not isinstance(label_column, str):
                raise ConfigError("class_columns: give either a list of label_column or class_columns.")
            task = self._task(self.set)
            return {self.set: ClassColumns(self.class_columns, task, uncertain, blank)}
        if uncertain is not None:
            raise ConfigError("uncertain: only class_columns have uncertain cells; leave it out.")
        if isinstance(label_column, str):
            return {self.set: OneCell(label_column, self._task(self.set), separator, blank)}
        if not label_column or len({*label_column}) != len(label_column):
            raise ConfigError("label_column: a list needs at least one column, and each column once.")
        self._columns = {f"{self.set}_{column}": column for column in label_column}
        for key in ("task", "classes", "purpose", "noun"):
            self._check_keys(key, label_column)
        return {name: OneCell(column, self._task(name), separator, blank) for name, column in self._columns.items()}

    def cleaned(self, name: str, rows: Sequence[LabelledImage], source: Path) -> Cleaned:
        """Join spellings, remove "no finding", and give labels the texts of the classes.

        Args:
            name: name of the set.
            rows: its rows, with labels as the data name them.
            source: file or folder, for messages.

        Raises:
            ConfigError: for an ordinal set without classes, or an unknown task.
            DataError: for an unknown label, too few classes, or no row.
        """
        task, classes, both = self._task(name), self._classes(name), 0
        rows = list(rows)
        if task == "multi_label":
            rows, both = without_no_finding(rows, self.no_finding)
        notes = [] if self.fold_case else spelling_note(rows)
        rows = folded(rows, classes) if self.fold_case else rows
        if both:
            notes.append(f'{name}: {both} rows say "no finding" beside a finding; the finding counts')
        texts = class_texts(classes, task, rows, source)
        words = ClassSet(name, self.modality, task, texts, self._of("purpose", name), self._of("noun", name))
        return Cleaned(words, renamed(rows, classes), both, notes)

    def _task(self, name: str) -> LabelTask:
        return self._of("task", name)

    def _classes(self, name: str) -> Classes | None:
        classes = self._of("classes", name)
        if classes is not None or self.class_columns is None:
            return classes
        columns = list(self.class_columns)
        if self._task(name) == "multi_label":
            none = no_finding_names(self.no_finding)
            return [column for column in columns if fold(column) not in none]
        return columns

    def _of(self, key: str, name: str) -> Any:
        """Return an option of a set; with several label columns the option may be a mapping by column."""
        value = getattr(self, key)
        column = self._columns.get(name)
        if column is not None and (key == "classes" or isinstance(value, Mapping)):
            defaults = {"task": "multi_class", "purpose": "for diagnosis", "noun": "diagnoses"}
            return None if value is None else value.get(column, defaults.get(key))
        return value

    def _check_keys(self, key: str, columns: Sequence[str]) -> None:
        value = getattr(self, key)
        if key == "classes" and value is not None and not isinstance(value, Mapping):
            raise ConfigError("classes: with several label columns it is a mapping from column to its classes.")
        for column in value if isinstance(value, Mapping) else ():
            if column not in columns:
                raise ConfigError(f"{key}: there is no label column {column!r}; {nearest(str(column), list(columns))}")
