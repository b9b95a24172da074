"""Pairs predictions with the questions that they answer. Right answers always come from the question file."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from medtune.errors import DataError
from medtune.evaluation.prediction import Prediction
from medtune.evaluation.protocols.base import Query


def match_predictions(
    queries: Sequence[Query],
    predictions: Sequence[Prediction],
    *,
    answer_keys: Mapping[str, Sequence[str]] | None = None,
    on_missing: Literal["error", "wrong"] = "error",
    on_extra: Literal["error", "ignore"] = "error",
) -> tuple[list[Prediction], dict[str, Any]]:
    """Pair queries with predictions by id.

    Args:
        queries: The expected queries.
        predictions: The answers; their ids must be unique.
        answer_keys: Protocol name to the keys of ``meta`` that come from the prediction; the default is ``scores`` and
            ``score_tokens``.
        on_missing: ``wrong`` scores an unanswered query as a wrong answer in the wrong format.
        on_extra: ``ignore`` leaves out predictions for other queries.

    Returns:
        One row for each query, in order, with the query's references and meta; and the counts ``asked``, ``answered``,
        ``missing``, ``extra``, ``other_prompt`` (answers to a prompt with other words) and ``by_task``.

    Raises:
        DataError: Predictions are missing, extra or duplicate, or contradict the question file.
    """
    answers: dict[str, Prediction] = {}
    for row in predictions:
        if row.id in answers:
            raise DataError(f"the query {row.id!r} is answered more than once; keep one answer to each query.")
        answers[row.id] = row
    missing = [query.id for query in queries if query.id not in answers]
    extra = sorted(set(answers) - {query.id for query in queries})
    if missing and on_missing == "error":
        raise DataError(
            f"{_listed(missing)} of {len(queries)} queries without an answer; finish the prediction, give evaluate the "
            "same split, protocols, limit and seed as predict, or set on_missing=wrong."
        )
    if extra and on_extra == "error":
        raise DataError(
            f"{_listed(extra)} answers to queries that this question file does not give; give evaluate the same split, "
            "protocols, limit and seed as predict, or set on_extra=ignore."
        )
    keys = answer_keys or {}
    rows = [_joined(query, answers.get(query.id), keys.get(query.task, _SCORES)) for query in queries]
    by_task: dict[str, int] = {}
    for query in queries:
        by_task[query.task] = by_task.get(query.task, 0) + 1
    worded = sum(bool(answers[q.id].prompt) and answers[q.id].prompt != q.prompt for q in queries if q.id in answers)
    return rows, {
        "asked": len(queries),
        "answered": len(queries) - len(missing),
        "missing": len(missing),
        "extra": len(extra),
        "other_prompt": worded,
        "by_task": by_task,
    }


_LISTS = ("options", "classes")
_SCORES = ("scores", "score_tokens")


def _joined(query: Query, row: Prediction | None, answer_keys: Sequence[str]) -> Prediction:
    if row is None:
        meta = {**query.meta, "missing": True}
        return Prediction(query.id, query.task, query.prompt, "", query.references, meta)
    contradictions = [
        name
        for name, given, asked in (
            ("task", row.task, query.task),
            ("references", row.references or query.references, query.references),
            ("images", list(row.meta.get("images", query.meta["images"])), query.meta["images"]),
            *(
                (name, list(row.meta.get(name, query.meta[name])), query.meta[name])
                for name in _LISTS
                if name in query.meta
            ),
        )
        if given != asked
    ]
    if contradictions:
        raise DataError(
            f"prediction {row.id!r} and the question file disagree on its {contradictions[0]}; the prediction was made "
            "on another question file or with another seed: predict again."
        )
    answered: dict[str, Any] = {name: row.meta[name] for name in answer_keys if name in row.meta}
    return dataclasses.replace(row, references=query.references, meta={**query.meta, **answered})


def _listed(ids: Sequence[str], shown: int = 3) -> str:
    return f"{len(ids)} ({', '.join(map(repr, ids[:shown]))}{', ...' if len(ids) > shown else ''})"
