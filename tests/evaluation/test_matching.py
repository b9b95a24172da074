import dataclasses

import pytest

from medtune.errors import DataError
from medtune.evaluation.matching import match_predictions
from medtune.evaluation.prediction import Prediction
from medtune.evaluation.protocols.registry import plan_queries
from tests.evaluation.classes import answered, class_questions


@pytest.fixture
def queries(questions):
    return plan_queries(questions, ["open"])


def test_rows_follow_the_queries_and_counts_are_stated(queries, answer):
    rows, counts = match_predictions(queries, [answer(query) for query in reversed(queries)])
    assert [row.id for row in rows] == [query.id for query in queries]
    assert counts == {
        "asked": 8, "answered": 8, "missing": 0, "extra": 0, "other_prompt": 0, "by_task": {"open": 8},
    }  # fmt: skip


def test_the_gold_comes_from_the_question_file(queries):
    rows, counts = match_predictions(queries, [Prediction(q.id, "open", "other words", "big") for q in queries])
    assert rows[0].meta == queries[0].meta
    assert rows[0].references == ("big",)
    assert counts["other_prompt"] == 8
    bare = [Prediction(q.id, "open", "", "big") for q in queries]
    assert match_predictions(queries, bare)[1]["other_prompt"] == 0, "a prompt that is not told is no other one"


@pytest.mark.parametrize("lie", [{"answer": "small"}, {"attribute": "granule type"}, {"swapped": True}, {"kind": "x"}])
def test_a_prediction_that_lies_about_the_question_is_not_believed(queries, answer, lie):
    answers = [answer(query) for query in queries]
    answers[0] = dataclasses.replace(answers[0], meta={**answers[0].meta, **lie}, references=())
    rows, _ = match_predictions(queries, answers)
    assert rows[0].meta == queries[0].meta and rows[0].references == queries[0].references


def test_what_the_models_side_writes_is_kept_and_a_protocol_says_what_that_is(queries, answer):
    told = {"scores": [-1.0], "score_tokens": [2], "judgement": 7, "tokens": 3}
    answers = [dataclasses.replace(row, meta={**row.meta, **told}) for row in map(answer, queries)]
    rows, _ = match_predictions(queries, answers)
    assert rows[0].meta == {**queries[0].meta, "scores": [-1.0], "score_tokens": [2]}
    rows, _ = match_predictions(queries, answers, answer_keys={"open": ("judgement",)})
    assert rows[0].meta == {**queries[0].meta, "judgement": 7}


def test_missing_answers(queries, answer):
    answers = [answer(query) for query in queries[2:]]
    with pytest.raises(DataError, match=r"2 \('s0/open', 's1/open'\) of 8 queries without an answer"):
        match_predictions(queries, answers)
    rows, counts = match_predictions(queries, answers, on_missing="wrong")
    assert (counts["missing"], counts["answered"]) == (2, 6)
    assert rows[0].prediction == "" and rows[0].meta["missing"]


def test_extra_answers(queries, answer):
    answers = [*(answer(query) for query in queries), Prediction("zz", "open", "", "big")]
    with pytest.raises(DataError, match=r"1 \('zz'\) answers to queries"):
        match_predictions(queries, answers)
    rows, counts = match_predictions(queries, answers, on_extra="ignore")
    assert len(rows) == 8 and counts["extra"] == 1


def test_duplicate_answers(queries, answer):
    with pytest.raises(DataError, match="more than once"):
        match_predictions(queries, [answer(queries[0])] * 2)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"task": "yes_no"}, "task"),
        ({"references": ("small",)}, "references"),
        ({"meta": {"images": ["9.png"]}}, "images"),
        ({"meta": {"options": ["small", "big"]}}, "options"),
    ],
)
def test_answers_to_another_question_file_are_refused(queries, answer, change, says):
    answers = [answer(query) for query in queries]
    answers[0] = dataclasses.replace(answers[0], **change)
    with pytest.raises(DataError, match=f"'s0/open'.*{says}"):
        match_predictions(queries, answers)


def test_the_classes_must_be_those_of_the_question_file():
    (query,) = plan_queries(class_questions()[:1], ["classification"])
    row = answered(query)
    with pytest.raises(DataError, match="disagree on its classes"):
        match_predictions([query], [dataclasses.replace(row, meta={**row.meta, "classes": ["b", "a"]})])


def test_answered_counts_the_queries_of_this_file(queries, answer):
    answers = [*map(answer, queries[:5]), Prediction("zz", "open", "", "big")]
    _, counts = match_predictions(queries, answers, on_missing="wrong", on_extra="ignore")
    assert (counts["asked"], counts["answered"], counts["missing"], counts["extra"]) == (8, 5, 3, 1)
