"""The prediction file: JSON lines ``{id, task, prompt, prediction, references, meta}``.

``predict`` writes it and ``evaluate`` reads it, so answers of other programs are scored by the same code. A run that is
killed while it writes leaves at most one incomplete last line; :class:`PredictionLog` removes that line and continues.
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medtune.data.append import LineLog, cut_torn_tail, explained_writing, open_locked, write_line
from medtune.data.sample import printable
from medtune.errors import DataError


@dataclass(frozen=True)
class Prediction:
    """One answer of one model to one query.

    Args:
        id: Id of the query, unique in its file.
        task: Name of the protocol that asked, e.g. ``"open"``.
        prompt: Text of the user's turn.
        prediction: The model's answer, free text (empty if only continuations were scored).
        references: Right answers, as text.
        meta: The data that the protocol needs for scoring: ``sample_id``, ``attribute``, ``options``, ``answer``,
            ``images``, ``swapped``, and ``scores`` (log-probability of each continuation) if the protocol compares
            continuations.
    """

    id: str
    task: str
    prompt: str
    prediction: str
    references: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, row: object, where: str) -> "Prediction":
        """Check one decoded JSON row.

        Args:
            row: The decoded JSON value.
            where: File and line, for error messages.

        Raises:
            DataError: A field is missing, unknown or of the wrong type.
        """
        if not isinstance(row, dict):
            raise DataError(f"{where}: a prediction must be a JSON object, not {type(row).__name__}.")
        unknown = sorted(set(row) - {"id", "task", "prompt", "prediction", "references", "meta"})
        if unknown:
            raise DataError(f"{where}: unknown field {unknown[0]!r} in a prediction; put extra facts under 'meta'.")
        for name in ("id", "task", "prediction"):
            if not isinstance(row.get(name), str):
                raise DataError(f"{where}: a prediction needs a text field {name!r}.")
        if not row["id"] or not row["task"]:
            raise DataError(f"{where}: 'id' and 'task' of a prediction must not be empty.")
        prompt, references, meta = row.get("prompt", ""), row.get("references", []), row.get("meta", {})
        if not isinstance(prompt, str) or not isinstance(meta, dict):
            raise DataError(f"{where}: 'prompt' must be text and 'meta' an object.")
        if not isinstance(references, list) or not all(isinstance(reference, str) for reference in references):
            raise DataError(f"{where}: 'references' must be a list of texts.")
        return cls(printable(row["id"]), row["task"], prompt, row["prediction"], tuple(references), meta)

    def to_dict(self) -> dict[str, Any]:
        """Return the row as it is in the file."""
        return {
            "id": self.id,
            "task": self.task,
            "prompt": self.prompt,
            "prediction": self.prediction,
            "references": list(self.references),
            "meta": self.meta,
        }


def iterate_predictions(path: str | Path) -> Iterator[Prediction]:
    """Yield the predictions of a JSONL file one by one; blank lines are skipped.

    Raises:
        DataError: The file is missing, or a line is not a prediction; the message names file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: there is no such prediction file; run the predict recipe first.")
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):  # covers both broken JSON and broken UTF-8
                raise DataError(
                    f"{where}: not a line of JSON. If the run that wrote it was killed, start it again: it cuts off a "
                    "torn last line and goes on."
                ) from None
            yield Prediction.from_dict(row, where)


def read_predictions(path: str | Path) -> list[Prediction]:
    """Read a whole prediction file; an id that occurs twice is an error.

    Raises:
        DataError: As :func:`iterate_predictions`, or an id occurs twice.
    """
    rows: list[Prediction] = []
    seen: set[str] = set()
    for row in iterate_predictions(path):
        if row.id in seen:
            raise DataError(f"{path}: the id {row.id!r} occurs more than once; keep one answer to each query.")
        seen.add(row.id)
        rows.append(row)
    return rows


def write_predictions(path: str | Path, rows: list[Prediction]) -> None:
    """Write a whole prediction file: write a temporary file and rename it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".tmp")
    aside.write_text("".join(_line(row) for row in rows), encoding="utf-8")
    os.replace(aside, path)


class PredictionLog(LineLog):
    """An append-only prediction file. If a run is killed, the next run continues where it stopped.

    While it is open, no other run can write the file: the lock is taken before anything is read or written, and it is
    released when the process ends.

    Args:
        path: The file; it and its folder are created if they do not exist.
        recover: Whether to read the file at once. False only takes the lock. A caller that must first check whether the
            file belongs to this run calls :meth:`recover` after the check.

    Attributes:
        done: Ids that the file already answers.
        cut: Number of bytes of an incomplete last line that were removed.

    Raises:
        DataError: A line other than an incomplete last line is not a prediction, an id occurs twice, or another run is
            writing the file.
    """

    def __init__(self, path: str | Path, recover: bool = True) -> None:
        path = Path(path)
        with explained_writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        super().__init__(path)
        self.cut = 0
        self.done: set[str] = set()
        if recover:
            self.recover()

    def recover(self) -> None:
        """Remove an incomplete last line and read which queries are answered; see the class for the errors."""
        try:
            self.cut = cut_torn_tail(self.path)
            self.done = {row.id for row in read_predictions(self.path)}
        except BaseException:
            self.close()
            raise

    def append(self, row: Prediction) -> None:
        """Append one answer; the whole line is passed to the operating system before this returns.

        Raises:
            DataError: The query was answered before, or the line cannot be written.
        """
        if row.id in self.done:
            raise DataError(f"{self.path}: the query {row.id!r} was answered before.")
        self.write(_line(row))
        self.done.add(row.id)

    def arrange(self, ids: Sequence[str]) -> None:
        """Sort the lines by the order of their queries, in a new file that replaces the old one atomically.

        Answers to queries that are not in the list come last, in their present order.

        Args:
            ids: Ids of the queries, in order.
        """
        place = {name: number for number, name in enumerate(ids)}
        lines = list(_lines(self.path))
        wanted = sorted(lines, key=lambda line: place.get(line[0], len(place)))
        if wanted == lines:
            return
        aside = self.path.with_name(self.path.name + ".tmp")
        aside.unlink(missing_ok=True)
        descriptor = open_locked(aside)  # lock the new file too, so that the path is locked at every moment
        try:
            with self.path.open("rb") as old:
                for _, start, size in wanted:
                    old.seek(start)
                    write_line(self.path, descriptor, old.read(size))
            with explained_writing(self.path):
                os.fsync(descriptor)
                os.replace(aside, self.path)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(self._descriptor)
        self._descriptor = descriptor


def _lines(path: Path) -> Iterator[tuple[str, int, int]]:
    """Yield id, first byte and number of bytes of each answer."""
    start = 0
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                yield json.loads(line)["id"], start, len(line)
            start += len(line)


def _line(row: Prediction) -> str:
    return json.dumps(row.to_dict(), ensure_ascii=False) + "\n"
