"""Selection of the best rows by their scores: overall, or uniformly from groups (BioMed-VITAL, Sec. 3.2)."""

import csv
import random
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medtune.curation.groups import quotas
from medtune.curation.records import Record, decoded, records_of
from medtune.data.sample import is_identifier, printable
from medtune.errors import ConfigError, DataError

Turns = Literal["mean", "first", "least"]
Refuse = Callable[[str, DataError], None]


@dataclass(frozen=True)
class Choice:
    """How much is taken.

    Attributes:
        percent: of all scored rows, above 0 and at most 100.
        count: number of rows, in place of a percentage.
        turns: the score of a conversation of several turns: their ``mean``, that of the ``first`` turn (as the official
            code), or that of its worst turn (``least``).
        seed: decides which groups get the rest of an uneven division.

    Raises:
        ValueError: A number is out of range, or both or none are given.
    """

    percent: float | None = None
    count: int | None = None
    turns: Turns = "mean"
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.percent is None) == (self.count is None):
            raise ValueError("choice: give percent or count, one of them")
        if self.percent is not None and not 0 < self.percent <= 100:
            raise ValueError(f"choice.percent must be above 0 and at most 100, got {self.percent}")
        if self.count is not None and self.count < 1:
            raise ValueError(f"choice.count must be at least 1, got {self.count}")
        if self.turns not in ("mean", "first", "least"):
            raise ValueError(f"choice.turns must be mean, first or least, got {self.turns!r}")

    def total(self, rows: int) -> int:
        """Return the number of rows to take of scored ones; at least 1.

        Raises:
            ConfigError: ``count`` is larger.
        """
        if self.count is not None and self.count > rows:
            raise ConfigError(f"choice.count is {self.count}, and {rows} rows have a score; lower it")
        return self.count or max(1, round(rows * (self.percent or 0) / 100))

    def of_turns(self, scores: NDArray[np.float64]) -> float:
        """Return the score of a conversation from those of its turns."""
        if self.turns == "first":
            return float(scores[0])
        return float(scores.mean() if self.turns == "mean" else scores.min())


@dataclass
class Rows:
    """Where the rows of a JSON Lines file lie; 16 bytes and the id of each.

    Attributes:
        path: The file.
        ids: Of the rows.
        starts: First byte of each.
        ends: Byte after the last of each.
    """

    path: Path
    ids: list[str] = field(default_factory=list)
    starts: array = field(default_factory=lambda: array("q"))
    ends: array = field(default_factory=lambda: array("q"))

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.ids)

    def raw(self, rows: Any) -> Iterator[bytes]:
        """Yield the bytes of some rows, as they are in the file, each with a line break at its end."""
        with self.path.open("rb") as file:
            for row in rows:
                file.seek(self.starts[row])
                yield file.read(self.ends[row] - self.starts[row]).rstrip(b"\r\n") + b"\n"

    def records(self, row: int) -> list[Record]:
        """Return the questions of a row."""
        where = f"{self.path.name} (id {self.ids[row]!r})"
        return records_of(decoded(next(self.raw([row])), where), where)


def find_rows(path: str | Path, refuse: Refuse, whole: bool) -> Rows:
    """List the rows of a JSON Lines file.

    Args:
        path: The file.
        refuse: Called with place and error of a row that cannot be used, which is then left out; may raise.
        whole: Whether each row must be a conversation; else only its id is looked at.

    Raises:
        DataError: The file is absent, is a JSON array, or holds no row; and for a row that cannot be used.
    """
    found = Rows(Path(path).expanduser())
    if not found.path.is_file():
        raise DataError(f"Cannot read {found.path}: there is no such file; check the path.")
    known: dict[str, int] = {}
    position = 0
    with found.path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            start, position = position, position + len(line)
            if not line.strip():
                continue
            where = f"{found.path.name}, line {number}"
            if number == 1 and line.lstrip().startswith(b"["):
                raise DataError(f"{found.path} is a JSON array; write one row a line (JSON Lines).")
            try:
                name = _id_of(decoded(line, where), where, whole)
                if name in known:
                    raise DataError(
                        f"{where}: the id {name!r} is also that of line {known[name]}; give each row an id of its own."
                    )
            except DataError as error:
                refuse(where, error)
                continue
            known[name] = number
            found.ids.append(name)
            found.starts.append(start)
            found.ends.append(position)
    if not found.ids:
        raise DataError(f"{found.path} holds no row that can be selected.")
    return found


def _id_of(row: Any, where: str, whole: bool) -> str:
    if whole:
        return records_of(row, where)[0].row
    if not isinstance(row, dict) or not is_identifier(row.get("id")):
        raise DataError(f"{where}: the row has no 'id'; give every row one of its own.")
    return printable(str(row["id"]))


def taken_rows(
    scores: NDArray[np.float64], total: int, groups: NDArray[np.integer] | None = None, seed: int = 0
) -> NDArray[np.bool_]:
    """Choose the rows with the highest scores; of equal scores the earlier row.

    With groups, each gives the same number of rows, its best ones; what a small group cannot give is shared out over
    the others.

    Args:
        scores: ``[n]``.
        total: Rows to take, at most n.
        groups: The group of each row, ``[n]``, from 0; None takes the best rows of all.
        seed: Decides which groups give the rest of an uneven division.

    Returns:
        Whether each row is taken, ``[n]``.

    Raises:
        ConfigError: ``total`` is larger than n.
        DataError: A score is not a finite number.
    """
    if total > len(scores):
        raise ConfigError(f"{total} rows are to be taken, and {len(scores)} have a score; lower the number")
    if not np.isfinite(scores).all():
        raise DataError(f"the score of row {int(np.flatnonzero(~np.isfinite(scores))[0]) + 1} is not a finite number")
    taken = np.zeros(len(scores), dtype=bool)
    if groups is None:
        taken[np.argsort(-scores, kind="stable")[:total]] = True
        return taken
    sizes = np.bincount(groups)
    given = np.asarray(quotas(sizes.tolist(), total, random.Random(seed)))
    return places_in_groups(scores, groups) < given[groups]


def places_in_groups(scores: NDArray[np.float64], groups: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return each row's place among its group by score, from 0, ``[n]``; of equal scores the earlier row is first."""
    order = np.lexsort((np.arange(len(scores)), -scores, groups))
    sizes = np.bincount(groups)
    starts = np.repeat(np.cumsum(sizes) - sizes, sizes)
    places = np.empty(len(scores), dtype=np.int64)
    places[order] = np.arange(len(scores)) - starts
    return places


def ranks_of(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return each row's rank by score, from 1, ``[n]``."""
    ranks = np.empty(len(scores), dtype=np.int64)
    ranks[np.argsort(-scores, kind="stable")] = np.arange(1, len(scores) + 1)
    return ranks


def read_table(path: str | Path, column: str) -> dict[str, str]:
    """Read a column of a CSV file by ``id``.

    Raises:
        DataError: The file or a column is absent, or an id is there twice.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise DataError(f"Cannot read {path}: there is no such file; check the path.")
    found: dict[str, str] = {}
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        names = next(reader, [])
        if "id" not in names or column not in names:
            raise DataError(f"{path} needs the columns id and {column}; its first line has {', '.join(names[:8])}.")
        at, wanted = names.index("id"), names.index(column)
        for number, row in enumerate(reader, start=2):
            if len(row) <= max(at, wanted):
                raise DataError(f"{path}, line {number}: the row is too short.")
            name = printable(row[at])
            if name in found:
                raise DataError(f"{path}, line {number}: the id {name!r} is there twice; keep one of the rows.")
            found[name] = row[wanted]
    return found


def numbers_of(path: str | Path, column: str, ids: list[str]) -> NDArray[np.float64]:
    """Return a column of numbers for some ids, NaN where the table has an empty cell.

    Raises:
        DataError: An id is missing, or a cell is no number.
    """
    table = read_table(path, column)
    absent = next((name for name in ids if name not in table), None)
    if absent is not None:
        raise DataError(f"{path} has no row of the id {absent!r}; make it for these rows.")
    try:
        return np.array([float(table[name]) if table[name] else np.nan for name in ids])
    except ValueError:
        raise DataError(f"{path}: the column {column} must hold numbers.") from None
