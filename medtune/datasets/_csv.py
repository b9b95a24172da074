"""Image-report pairs from a CSV table."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from medtune.data.images import ImageRoot
from medtune.data.reports import is_missing_report
from medtune.data.sample import Message, Sample, report_sample
from medtune.data.source import RecordSource, SampleSource
from medtune.data.tables import CsvFormat, check_cells, parse_row, read_header, scan_rows
from medtune.datasets._mixture import joined
from medtune.datasets.image_column import check_suffix, image_path
from medtune.errors import DataError


@dataclass(frozen=True)
class ReportColumns:
    """The columns of a table of reports; see :func:`report_csv_dataset`."""

    image: str
    text: str | None
    id: str | None = None
    image_separator: str | None = None
    image_suffix: str | None = None

    def __post_init__(self) -> None:
        check_suffix(self.image_suffix)


class ReportCsvSource(RecordSource):
    """Image-report pairs of a CSV file, a row at a time; see :func:`report_csv_dataset`."""

    def __init__(
        self, path: str | Path, image_root: str | Path | ImageRoot, names: ReportColumns, style: CsvFormat
    ) -> None:
        self.names, self.style = names, style
        if Path(path).suffix == ".gz":
            raise DataError(f"{path}: rows of a compressed table cannot be read one at a time; unpack it (gunzip).")
        required = [name for name in (names.image, names.text, names.id) if name]
        self.columns = read_header(Path(path).expanduser(), required, style)
        settings: list[object] = [names.image, names.text, names.id, names.image_separator]
        settings += [] if names.image_suffix is None else [{"image_suffix": names.image_suffix}]
        settings += [] if style.usual else [{"delimiter": style.delimiter, "encoding": style.encoding}]
        super().__init__(path, image_root, settings)

    def spans(self) -> Iterator[tuple[int, int, int, object]]:
        """Yield the place of each row; see :class:`RecordSource`."""
        at = self.columns.index(self.names.id) if self.names.id else None
        rows = scan_rows(self.path, self.style)
        next(rows)
        for row in rows:
            id = self._row_id(row.line) if at is None else row.fields[at].strip() if at < len(row.fields) else None
            yield row.start, row.end, row.line, id

    def parse(self, raw: bytes, number: int, where: str) -> Sample:
        """Convert a row to an image-report pair."""
        names = self.names
        cells = check_cells(parse_row(raw, where, self.style), self.columns, where)
        id = cells[names.id] if names.id else self._row_id(number)
        for column, value in ((names.id, id), (names.image, cells[names.image])):
            if not value:
                raise DataError(f"{where}: the cell of column {column!r} is empty; fill it in, or remove the row.")
        if names.text and is_missing_report(cells[names.text]):
            raise DataError(
                f"{where}: the report (column {names.text!r}) is empty, or a mark for none such as nan or ___; write "
                "it, or remove the row."
            )
        paths = cells[names.image]
        images = [path.strip() for path in paths.split(names.image_separator)] if names.image_separator else [paths]
        found = [image_path(path, names.image_suffix, where, names.image, self._is_image) for path in images]
        if not names.text:
            return Sample(id, tuple(found), (Message("user", ""),))
        return report_sample(id, tuple(found), cells[names.text])

    def _is_image(self, name: str) -> bool:
        try:
            self._root("").size(name, "")
        except DataError:
            return False
        return True

    def _row_id(self, line: int) -> str:
        return f"{self.path.stem}:{line}"


def report_csv_dataset(
    source: str | Sequence[str],
    image_root: str,
    image_column: str = "image",
    text_column: str | None = "text",
    id_column: str | None = None,
    image_separator: str | None = None,
    image_suffix: str | None = None,
    delimiter: str = ",",
    encoding: str = "utf-8",
    grey_bits: int | None = None,
) -> SampleSource:
    """Image-report pairs from a CSV file with a header.

    A report without a letter or digit (``___``) and a mark for none (``nan``, ``N/A``) count as empty.

    Args:
        source: the CSV file, or a list of files.
        image_root: folder or ``.tar`` that the image paths are relative to.
        image_column: column of the image's path.
        text_column: column of the report; null for images without reports, which ``predict`` asks its ``question``.
        id_column: column of a unique id; without one the id of a sample is made of file and line.
        image_separator: text between the paths if a row has several images, for example ``"|"``.
        image_suffix: suffix of the files, for a column that names images without it, for example ``.png``.
        delimiter: character between two cells, for example ``;``.
        encoding: encoding of the text, for example ``cp1252``.
        grey_bits: depth of the grey values in files of 16 bits, from 8 to 16; absent takes for each image the smallest
            depth that holds its largest value.

    Raises:
        ConfigError: for a delimiter, encoding, suffix or ``grey_bits`` that cannot be used, or an empty list of files.
        DataError: if a file or the image root is absent, or a column is missing (the message names the most similar
            one).
    """
    names = ReportColumns(image_column, text_column, id_column, image_separator, image_suffix)
    style = CsvFormat(delimiter, encoding)
    images = ImageRoot(image_root, grey_bits)
    return joined(source, lambda path: ReportCsvSource(path, images, names, style))
