"""Image-report pairs from a CSV table."""

from collections.abc import Iterator
from pathlib import Path

from medtune.data.images import ImageRoot
from medtune.data.sample import Sample, report_sample
from medtune.data.source import RecordSource
from medtune.data.tables import check_cells, parse_row, read_header, scan_rows
from medtune.errors import DataError


class ReportCsvSource(RecordSource):
    """Image-report pairs of a CSV file, a row at a time; see :func:`report_csv_dataset`."""

    def __init__(
        self,
        path: str | Path,
        image_root: str | Path | ImageRoot,
        image_column: str,
        text_column: str,
        id_column: str | None,
        image_separator: str | None,
    ) -> None:
        self.image_column, self.text_column, self.id_column = image_column, text_column, id_column
        self.image_separator = image_separator
        if Path(path).suffix == ".gz":
            raise DataError(f"{path}: rows of a compressed table cannot be read one at a time; unpack it (gunzip).")
        required = [image_column, text_column, *([id_column] if id_column else [])]
        self.columns = read_header(Path(path).expanduser(), required)
        super().__init__(path, image_root, [image_column, text_column, id_column, image_separator])

    def spans(self) -> Iterator[tuple[int, int, int, object]]:
        """Yield the place of each row; see :class:`RecordSource`."""
        at = self.columns.index(self.id_column) if self.id_column else None
        rows = scan_rows(self.path)
        next(rows)
        for row in rows:
            id = self._row_id(row.line) if at is None else row.fields[at].strip() if at < len(row.fields) else None
            yield row.start, row.end, row.line, id

    def parse(self, raw: bytes, number: int, where: str) -> Sample:
        """Convert a row to an image-report pair."""
        cells = check_cells(parse_row(raw, where), self.columns, where)
        id = cells[self.id_column] if self.id_column else self._row_id(number)
        for column, value in ((self.id_column, id), (self.image_column, cells[self.image_column])):
            if not value:
                raise DataError(f"{where}: the cell of column {column!r} is empty; fill it in, or remove the row.")
        if not cells[self.text_column]:
            raise DataError(f"{where}: the report (column {self.text_column!r}) is empty; write it, or remove the row.")
        paths = cells[self.image_column]
        images = [path.strip() for path in paths.split(self.image_separator)] if self.image_separator else [paths]
        return report_sample(id, tuple(images), cells[self.text_column])

    def _row_id(self, line: int) -> str:
        return f"{self.path.stem}:{line}"


def report_csv_dataset(
    source: str,
    image_root: str,
    image_column: str = "image",
    text_column: str = "text",
    id_column: str | None = None,
    image_separator: str | None = None,
    grey_bits: int | None = None,
) -> ReportCsvSource:
    """Image-report pairs from a CSV file with a header, in UTF-8.

    Args:
        source: the CSV file.
        image_root: folder or ``.tar`` that the image paths are relative to.
        image_column: column of the image's path.
        text_column: column of the report.
        id_column: column of a unique id; without one the id of a sample is made of file and line.
        image_separator: text between the paths if a row has several images, for example ``"|"``.
        grey_bits: depth of the grey values in files of 16 bits, from 8 to 16; absent takes for each image the smallest
            depth that holds its largest value.

    Raises:
        ConfigError: if ``grey_bits`` is not from 8 to 16.
        DataError: if the file or the image root is absent, or a column is missing (the message names the most similar
            one).
    """
    return ReportCsvSource(
        source, ImageRoot(image_root, grey_bits), image_column, text_column, id_column, image_separator
    )
