"""CSV tables, read with the checks that a hand-made file needs."""

import csv
import difflib
import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from medtune.data.opening import refuse_special
from medtune.errors import DataError


@dataclass(frozen=True)
class TableRow:
    """One row of a table.

    Attributes:
        line: the line of the file on which it begins, from 1.
        start: position of its first byte.
        end: position after its last byte.
        fields: its cells; :func:`check_cells` checks that there are as many as in the header.
    """

    line: int
    start: int
    end: int
    fields: list[str]


class _Lines:
    """The lines of a binary file as text, counting lines and bytes as they are read."""

    def __init__(self, path: Path) -> None:
        self.path, self.number, self.position = path, 0, 0

    def __iter__(self) -> Iterator[str]:
        with gzip.open(self.path) if self.path.suffix == ".gz" else self.path.open("rb") as file:
            for raw in file:
                self.number += 1
                self.position += len(raw)
                try:
                    yield raw.decode("utf-8-sig" if self.number == 1 else "utf-8")
                except UnicodeDecodeError:
                    where = f"{self.path}, line {self.number}"
                    raise DataError(f"{where}: this is not UTF-8 text; save the table as UTF-8.") from None


def scan_rows(path: Path) -> Iterator[TableRow]:
    """Yield the header and then each row that is not blank, with its place in the file.

    A file whose name ends in ``.gz`` is decompressed while it is read; positions refer to the decompressed text.

    Raises:
        DataError: if the file is absent, not UTF-8, or not CSV.
    """
    refuse_special(path)
    if not path.is_file():
        raise DataError(f"The table {path} does not exist; correct its path.")
    lines = _Lines(path)
    reader = csv.reader(lines, strict=True)
    line, start = 1, 0
    try:
        for fields in reader:
            if fields:
                yield TableRow(line, start, lines.position, fields)
            line, start = lines.number + 1, lines.position
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: the compressed file is damaged or cut off ({error}); get a whole copy.") from None
    except csv.Error as error:
        raise DataError(f"{path}, line {line}: this is not CSV ({error}); check its quotes.") from None


def read_header(path: Path, required: Sequence[str]) -> list[str]:
    """Return a table's column names, without surrounding spaces.

    Raises:
        DataError: if the table is empty, or a required column is absent; the message names the most similar column.
    """
    first = next(scan_rows(path), None)
    if first is None:
        raise DataError(f"The table {path} is empty; its first line must name the columns {', '.join(required)}.")
    columns = [name.strip() for name in first.fields]
    for name in required:
        if name not in columns:
            raise DataError(f"{path}, line 1: there is no column {name!r}; {_column_hint(name, columns)}.")
    repeated = sorted(
        {name for name in columns if name and columns.count(name) > 1}
    )  # spreadsheets write columns without a name
    if repeated:
        raise DataError(f"{path}, line 1: the column {repeated[0]!r} is there twice; rename one of them.")
    return columns


def _column_hint(name: str, columns: Sequence[str]) -> str:
    if len(columns) == 1 and any(mark in columns[0] for mark in ";\t|"):
        return "the columns must be separated by commas"
    folded = {column.lower(): column for column in reversed(columns)}
    near = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.5)
    there = f"the columns are {', '.join(repr(column) for column in columns)}"
    return f"did you mean {folded[near[0]]!r}? ({there})" if near else there


def check_cells(fields: Sequence[str], columns: Sequence[str], where: str) -> dict[str, str]:
    """Return a row as a mapping from column to cell, without spaces around the cells.

    Raises:
        DataError: if the number of cells differs from the number of columns.
    """
    if len(fields) != len(columns):
        hint = "put a text that holds commas into double quotes" if len(fields) > len(columns) else "fill it up"
        raise DataError(f"{where}: {len(fields)} cells where the header has {len(columns)}; {hint}.")
    return {name: cell.strip() for name, cell in zip(columns, fields, strict=True)}


def parse_row(raw: bytes, where: str) -> list[str]:
    """Return the cells of one row's bytes.

    Raises:
        DataError: if they are not CSV, because the file was changed after it was scanned.
    """
    try:
        return next(csv.reader(io.StringIO(raw.decode("utf-8-sig"), newline=""), strict=True), [])
    except (csv.Error, UnicodeDecodeError):
        raise DataError(f"{where}: this is not CSV in UTF-8; was the file changed while it was read?") from None


def read_table(path: Path, required: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield each row of a table as (where, cells).

    Args:
        path: a CSV file in UTF-8 with a header; may be compressed (``.csv.gz``).
        required: columns that must exist.

    Raises:
        DataError: as :func:`read_header`, :func:`scan_rows` and :func:`check_cells`.
    """
    columns = read_header(path, required)
    rows = scan_rows(path)
    next(rows)
    for row in rows:
        where = f"{path.name}, line {row.line}"
        yield where, check_cells(row.fields, columns, where)
