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
from medtune.errors import ConfigError, DataError

LONGEST_CELL = 16_000_000
"""Characters of a cell; a longer one is a quote that is never closed."""
csv.field_size_limit(LONGEST_CELL)  # the limit of the module is 131,072, which a report with an image's text may exceed


@dataclass(frozen=True)
class CsvFormat:
    """How a table is written.

    Attributes:
        delimiter: the character between two cells: ``,``, or ``;`` in files of a German Excel, or a tab.
        encoding: the encoding of the text: ``utf-8``, or ``cp1252`` in files of a Western Excel.

    Raises:
        ConfigError: for a delimiter that is not one character, or an encoding that is unknown or in which line breaks
            and delimiters are not single bytes (UTF-16).
    """

    delimiter: str = ","
    encoding: str = "utf-8"

    def __post_init__(self) -> None:
        if self.delimiter == "\\t":
            object.__setattr__(self, "delimiter", "\t")
        if len(self.delimiter) != 1 or self.delimiter in '"\r\n ':
            raise ConfigError(f"delimiter: {self.delimiter!r} must be one character, such as ',' or ';' or a tab.")
        try:
            single = f"{self.delimiter}\n".encode(self.encoding) == f"{self.delimiter}\n".encode()
        except (LookupError, UnicodeError, ValueError):
            single = False
        if not single:
            raise ConfigError(
                f"encoding: {self.encoding!r} is unknown or has no single bytes for {self.delimiter!r} and line "
                "breaks; use for example utf-8 or cp1252, or save the table as UTF-8."
            )

    @property
    def usual(self) -> bool:
        """Whether this is the default, commas and UTF-8."""
        return self == CsvFormat()

    def decode(self, raw: bytes, first: bool) -> str:
        """Return a line as text; a byte order mark before the first line is removed."""
        utf8 = first and self.encoding.lower().replace("_", "-") in ("utf-8", "utf8")
        return raw.decode("utf-8-sig" if utf8 else self.encoding)


COMMAS = CsvFormat()


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

    def __init__(self, path: Path, style: CsvFormat) -> None:
        self.path, self.style, self.number, self.position = path, style, 0, 0

    def __iter__(self) -> Iterator[str]:
        with gzip.open(self.path) if self.path.suffix == ".gz" else self.path.open("rb") as file:
            for raw in file:
                self.number += 1
                self.position += len(raw)
                try:
                    yield self.style.decode(raw, self.number == 1)
                except UnicodeDecodeError:
                    where, name = f"{self.path}, line {self.number}", self.style.encoding.upper()
                    raise DataError(
                        f"{where}: this is not {name} text; save the table as UTF-8, or give its encoding "
                        "(encoding: cp1252 for an Excel of Western Europe)."
                    ) from None


def scan_rows(path: Path, style: CsvFormat = COMMAS) -> Iterator[TableRow]:
    """Yield the header and then each row that is not blank, with its place in the file.

    A file whose name ends in ``.gz`` is decompressed while it is read; positions refer to the decompressed text.

    Raises:
        DataError: if the file is absent, not in its encoding, or not CSV.
    """
    refuse_special(path)
    if not path.is_file():
        raise DataError(f"The table {path} does not exist; correct its path.")
    lines = _Lines(path, style)
    reader = csv.reader(lines, strict=True, delimiter=style.delimiter)
    line, start = 1, 0
    try:
        for fields in reader:
            if fields:
                yield TableRow(line, start, lines.position, fields)
            line, start = lines.number + 1, lines.position
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: the compressed file is damaged or cut off ({error}); get a whole copy.") from None
    except csv.Error as error:
        if "field larger" in str(error):
            raise DataError(
                f"{path}, line {line}: a cell of this row has more than {LONGEST_CELL:,} characters; a quote is not "
                "closed."
            ) from None
        raise DataError(f"{path}, line {line}: this is not CSV ({error}); check its quotes.") from None


def read_header(path: Path, required: Sequence[str], style: CsvFormat = COMMAS) -> list[str]:
    """Return a table's column names, without surrounding spaces.

    Raises:
        DataError: if the table is empty, or a required column is absent; the message names the most similar column.
    """
    first = next(scan_rows(path, style), None)
    if first is None:
        raise DataError(f"The table {path} is empty; its first line must name the columns {', '.join(required)}.")
    columns = [name.strip() for name in first.fields]
    for name in required:
        if name not in columns:
            raise DataError(f"{path}, line 1: there is no column {name!r}; {_column_hint(name, columns, style)}.")
    repeated = sorted(
        {name for name in columns if name and columns.count(name) > 1}
    )  # spreadsheets write columns without a name
    if repeated:
        raise DataError(f"{path}, line 1: the column {repeated[0]!r} is there twice; rename one of them.")
    return columns


def _column_hint(name: str, columns: Sequence[str], style: CsvFormat) -> str:
    other = next((mark for mark in ",;\t|" if mark != style.delimiter and mark in columns[0]), None)
    if len(columns) == 1 and other:
        return (
            f"the columns must be separated by {style.delimiter!r}; if they are by {other!r}, give delimiter: {other!r}"
        )
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


def parse_row(raw: bytes, where: str, style: CsvFormat = COMMAS) -> list[str]:
    """Return the cells of one row's bytes.

    Raises:
        DataError: if they are not CSV, because the file was changed after it was scanned.
    """
    try:
        text = io.StringIO(style.decode(raw, first=True), newline="")
        return next(csv.reader(text, strict=True, delimiter=style.delimiter), [])
    except (csv.Error, UnicodeDecodeError):
        name = style.encoding.upper()
        raise DataError(f"{where}: this is not CSV in {name}; was the file changed while it was read?") from None


def read_table(path: Path, required: Sequence[str], style: CsvFormat = COMMAS) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield each row of a table as (where, cells).

    Args:
        path: a CSV file with a header; may be compressed (``.csv.gz``).
        required: columns that must exist.
        style: delimiter and encoding.

    Raises:
        DataError: as :func:`read_header`, :func:`scan_rows` and :func:`check_cells`.
    """
    columns = read_header(path, required, style)
    rows = scan_rows(path, style)
    next(rows)
    for row in rows:
        where = f"{path.name}, line {row.line}"
        yield where, check_cells(row.fields, columns, where)
