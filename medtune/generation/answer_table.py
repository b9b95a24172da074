"""The answers of a prediction file as a table for people: ``predictions.csv``."""

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from medtune.data.sample import IMAGE_TAG
from medtune.data.writing import replaced
from medtune.evaluation.prediction import Prediction, iterate_predictions

COLUMNS = ("id", "images", "question", "answer", "finished", "query", "control")
"""``id`` is that of the row that was asked, ``query`` that of the query, which is unique. ``control`` is empty if
the row was asked as it is; else it says what was changed for a control: ``swapped`` (another row's image), ``no_image``
and the other probes of the robustness card. Columns of notes follow."""
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_NUMBER = re.compile(r"[+-]?\d+(?:[.,]\d+)*")


def write_answer_table(predictions: Path, delimiter: str = ",") -> Path:
    """Write ``NAME.csv`` next to ``NAME.jsonl``, one row per answer in the same order; an older table is replaced.

    The encoding is UTF-8 with a byte order mark, by which Excel knows it. A text that a spreadsheet would take for a
    formula gets an apostrophe in front. Rows of likelihoods, which have no answer, are left out. Each note
    that answers carry, such as the adapter that gave them, is a further column.

    Args:
        predictions: The prediction file.
        delimiter: Character between two cells.

    Returns:
        The table. A reader sees either the complete old one or the complete new one.
    """
    table = predictions.with_suffix(".csv")
    with replaced(table) as aside, aside.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter, lineterminator="\r\n")
        notes = _notes(predictions)
        writer.writerow([*COLUMNS, *notes])
        writer.writerows(_rows(predictions, notes))
    return table


def _notes(predictions: Path) -> list[str]:
    """Names of all notes, in the order in which they are first seen."""
    return list({name: None for row in iterate_predictions(predictions) for name in row.meta.get("notes", ())})


def _rows(predictions: Path, notes: Sequence[str]) -> Iterator[list[str]]:
    for row in iterate_predictions(predictions):
        if "scores" not in row.meta:
            kept = row.meta.get("notes", {})
            values = [kept.get(name) for name in notes]
            cells = [*_cells(row), *("" if value is None else str(value) for value in values)]
            yield [as_text(cell) for cell in cells]


def _cells(row: Prediction) -> list[str]:
    meta: dict[str, Any] = row.meta
    finished = {True: "yes", False: "no"}.get(meta.get("stopped"), "")  # type: ignore[arg-type]
    question = row.prompt.replace(IMAGE_TAG, "").strip()
    images = [str(image) for image in meta.get("images", [])]
    control = "swapped" if meta.get("swapped") else str(meta.get("probe") or "")
    return [str(meta.get("sample_id", row.id)), "+".join(images), question, row.prediction, finished, row.id, control]


def as_text(cell: str) -> str:
    """Return a cell that a spreadsheet shows as text: ``=1+1`` and ``- no finding`` would be read as formulas."""
    return f"'{cell}" if cell.startswith(_FORMULA) and not _NUMBER.fullmatch(cell) else cell
