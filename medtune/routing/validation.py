"""The files from which a threshold is chosen: what a router said of each question, and how right each adapter was."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medtune.errors import ConfigError, DataError
from medtune.evaluation.prediction import iterate_predictions


@dataclass(frozen=True)
class Routed:
    """What a router said.

    Attributes:
        ids: Ids of the answers.
        labels: The tasks that occur.
        scores: ``[answers, labels]``: the score of the most probable task, and 0 elsewhere.
    """

    ids: list[str]
    labels: list[str]
    scores: NDArray[np.float64]


def read_routes(predictions: str | Path) -> Routed:
    """Read route and score of every answer that a routed ``predict`` wrote.

    Raises:
        DataError: If there is no answer, or one without a route and a score.
    """
    routes: dict[str, tuple[str, float]] = {}
    for row in iterate_predictions(predictions):
        notes = row.meta.get("notes", {})
        task, score = notes.get("route"), notes.get("score")
        if not isinstance(task, str) or not isinstance(score, int | float):
            raise DataError(
                f"{predictions}: answer {row.id!r} has no route with a score; take the predictions of a backend "
                "RoutedModel with a router"
            )
        routes[row.id] = (task, float(score))
    if not routes:
        raise DataError(f"{predictions} holds no answers")
    labels = sorted({task for task, _ in routes.values()})
    scores = np.zeros((len(routes), len(labels)))
    for place, (task, score) in enumerate(routes.values()):
        scores[place, labels.index(task)] = score
    return Routed(list(routes), labels, scores)


def read_correctness(folders: Mapping[str, str], ids: Sequence[str], column: str = "correct") -> dict[str, list[float]]:
    """Read how right each adapter's answers are.

    Args:
        folders: adapter -> folder with the ``verdicts.csv`` that ``evaluate`` wrote for its answers.
        ids: The answers, in the order of the result.
        column: A column of that file with numbers from 0 to 1, such as ``correct`` or ``measure:f1``.

    Returns:
        adapter -> one number per id.

    Raises:
        DataError: If a file, the column or an answer is missing, or a number is not from 0 to 1.
    """
    return {name: _column(Path(folder) / "verdicts.csv", ids, column) for name, folder in folders.items()}


def read_better(folders: Mapping[str, str], ids: Sequence[str], fallback: str) -> dict[str, list[float]]:
    """Read whether each adapter's answers are better than the fallback's, question by question.

    A mean over tasks of unlike units, and of numbers that are hardly ever exactly right, says little; which of two
    answers to one question is nearer to the right one has no unit. Errors are compared where there are any (counting
    and regression), else the F1 of boxes, else whether the answer is right. An answer that could not be read is worst.

    Args:
        folders: adapter -> folder with the ``verdicts.csv`` that ``evaluate`` wrote for its answers.
        ids: The answers, in the order of the result.
        fallback: One of the adapters.

    Returns:
        adapter -> one number per id: 1 better, 0.5 as good, 0 worse.

    Raises:
        ConfigError: If the fallback is not among the adapters.
        DataError: As :func:`read_correctness`.
    """
    if fallback not in folders:
        raise ConfigError(f"the fallback {fallback!r} is not among the adapters {', '.join(sorted(folders))}")
    wrong = {name: _wrongness(Path(folder) / "verdicts.csv", ids) for name, folder in folders.items()}
    return {
        name: [0.5 if one == other else float(one < other) for one, other in zip(values, wrong[fallback], strict=True)]
        for name, values in wrong.items()
    }


def _wrongness(file: Path, ids: Sequence[str]) -> list[float]:
    rows = _rows(file, ids, "correct")
    values = []
    for name in ids:
        row = rows[name]
        try:
            if row.get("read") == "0":
                value = math.inf
            elif row.get("measure:error"):
                value = abs(float(row["measure:error"]))  # the error has a sign
            else:
                value = 1 - float(row.get("measure:image_f1") or row["correct"])
        except ValueError:
            raise DataError(f"{file}: the measures of answer {name!r} are no numbers; evaluate it again") from None
        values.append(value)
    return values


def _rows(file: Path, ids: Sequence[str], column: str) -> dict[str, dict[str, str]]:
    try:
        with file.open(encoding="utf-8", newline="") as handle:
            reader = csv.DictReader(handle)
            names = reader.fieldnames or []
            if column not in names or "id" not in names:
                raise DataError(f"{file} has no column {column!r}; it has {', '.join(names)}")
            rows = {row["id"]: row for row in reader}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file} cannot be read ({error}); evaluate the adapter's answers first") from error
    missing = [name for name in ids if name not in rows]
    if missing:
        raise DataError(
            f"{file} lacks {len(missing)} of the routed answers (first: {missing[0]!r}); ask the same questions"
        )
    return rows


def _column(file: Path, ids: Sequence[str], column: str) -> list[float]:
    rows = _rows(file, ids, column)
    values = []
    for name in ids:
        try:
            value = float(rows[name][column])
        except (TypeError, ValueError):
            value = float("nan")
        if not 0 <= value <= 1:
            raise DataError(f"{file}: answer {name!r} has no number from 0 to 1 in column {column!r}")
        values.append(value)
    return values


def chosen_threshold(path: str | Path) -> float:
    """Return the best threshold of a ``threshold.json`` that the recipe ``router_threshold`` wrote.

    Raises:
        ConfigError: If the file is absent or holds none.
    """
    try:
        best = json.loads(Path(path).read_text(encoding="utf-8"))["best"]["threshold"]
        if not isinstance(best, int | float) or isinstance(best, bool) or not 0 <= best < math.inf:
            raise TypeError
    except OSError:
        raise ConfigError(f"threshold: {path} cannot be read; run the recipe router_threshold first") from None
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"threshold: {path} is no threshold.json of the recipe router_threshold") from None
    return float(best)
