"""Answers of other programs are an id and a text: questions, right answers and images come from the question file."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from medtune.errors import DataError
from medtune.evaluation.prediction import Prediction, read_predictions
from medtune.evaluation.protocols.registry import plan_queries
from medtune.evaluation.questions import read_questions


def read_answers(path: Path, questions: str | Path | None) -> list[Prediction]:
    """Read a prediction file and complete its rows.

    Args:
        path: The predictions.
        questions: Question file; None takes the rows as they are.

    Raises:
        DataError: A file cannot be read, or an answer is to no question of the file.
    """
    rows = read_predictions(path)
    return rows if questions is None else completed(rows, path, questions)


def completed(rows: Sequence[Prediction], path: Path, questions: str | Path) -> list[Prediction]:
    """Return answers with the prompt, the right answers and the facts of their questions.

    What a row says itself stays, except for the right answers. Answers on other images, and to changed questions, are
    left as they are.

    Args:
        rows: The answers; their ids are those of the predict recipe, such as ``7/chat``.
        path: Their file, for errors.
        questions: Question file.

    Raises:
        DataError: An answer is to no question of the file.
        ConfigError: A protocol is unknown.
    """
    own = [row for row in rows if not row.meta.get("swapped") and not row.meta.get("probe")]
    asked = {query.id: query for query in plan_queries(read_questions(questions), list({row.task: 0 for row in own}))}
    strange = next((row.id for row in own if row.id not in asked), None)
    if strange is not None:
        raise DataError(
            f"{path}: {strange!r} answers no question of {questions}; the id of an answer is that of its question, a "
            "slash and the protocol."
        )
    kept = {row.id for row in own}
    return [
        replace(
            row,
            prompt=row.prompt or asked[row.id].prompt,
            references=asked[row.id].references,
            meta={**asked[row.id].meta, **row.meta},
        )
        if row.id in kept
        else row
        for row in rows
    ]
