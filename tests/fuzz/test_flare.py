"""Drawn question files and answers of FLARE's form: each is a value, or refused by a MedtuneError or a named reason."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medtune.data.sample import Message, Sample
from medtune.datasets.flare import TASKS, flare, task_type
from medtune.errors import MedtuneError
from medtune.evaluation.evaluation import evaluate
from medtune.evaluation.flare.answers import read_answer, value_of, written
from medtune.evaluation.flare.choices import question_options
from medtune.evaluation.flare.official import OFFICIAL
from medtune.evaluation.flare.reading import REASONS
from medtune.evaluation.prediction import Prediction
from medtune.evaluation.protocols.registry import plan_queries
from tests.datasets.flare.files import ROWS, write_set
from tests.fuzz.mutations import bounded
from tests.fuzz.test_rows import DAMAGE, VALUES, check, damaged

pytestmark = pytest.mark.timeout(120)

WORDS = st.sampled_from(
    ["A", "b", "A:", "B)", "(C)", "The answer is", "Final Answer:", "benign", "**", "\\boxed{", "}", "none", "no", "\n"]
    + ["3", "3,5", "1,234", "-7", "1e400", "9" * 400, "%", "to", "seven", "0.5", "-", "\u2212", ",", ";", "; ", "- "]
    + ["[1, 2, 3, 4]", "[[1, 2, 3, 4], [5, 6, 7, 8]]", "[", "]", "{", '{"1": [[1, 2, 3, 4]]}', "{'bbox': [1, 2, 3, 4]}"]
    + ['"label":', "x_min: 1, y_min: 2, x_max: 3, y_max: 4", "```json", "```", "null", "NaN", "'", '"', "\\", "\x00"]
    + [
        "Dental Caries",
        "Endodontic Treatment, Restorative Treatment, and Complications",
        "<|im_end|>",
        "\ud800",
        "\x001\x00",
    ]
)
PROSE = st.lists(WORDS | st.text(max_size=5), max_size=8).map(" ".join) | st.lists(WORDS, max_size=5).map("".join)
NUMBERS = st.integers(-5, 30) | st.floats() | st.integers(10**300, 10**320)
JSON = st.recursive(
    NUMBERS | st.none() | st.booleans() | st.sampled_from(["", "x", "[[1, 2, 3, 4]]", "bbox", "1"]),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(
            st.sampled_from(["bbox", "label", "1", "x", "y", "w", "h", "x1", "coordinates"]), inner, max_size=4
        )
        | st.lists(NUMBERS, min_size=4, max_size=4)
    ),
    max_leaves=12,
).map(lambda value: json.dumps(value))
ANSWERS = st.one_of(PROSE, PROSE, JSON, JSON.map(lambda text: text[: len(text) * 2 // 3]), st.text(max_size=30))
OPTIONS = st.sampled_from([{}, {"A": "benign", "B": "malignant"}, {"A": "", "B": "-"}, {"A": "x", "B": "x"}])
LABELS = st.sampled_from([(), ("benign", "malignant"), ("Mass, large", "none", "Nodule"), ("", ";", "(")])


@bounded(800)
@given(st.sampled_from(TASKS), ANSWERS, OPTIONS, LABELS)
def test_any_answer_is_a_value_or_has_a_named_reason(
    task: str, answer: str, options: dict[str, str], labels: tuple[str, ...]
) -> None:
    reading = read_answer(task, answer, options, labels)
    if reading.value is None:
        assert reading.reason in REASONS
        return
    assert reading.reason == ""
    if task in ("counting", "regression"):
        assert math.isfinite(reading.value) and abs(reading.value) <= 1e6
    text = written(reading.value)
    assert written(value_of(task, text)) == text


@bounded(300)
@given(st.sampled_from(sorted(OFFICIAL)), st.lists(st.tuples(ANSWERS, ANSWERS), max_size=3))
def test_the_published_numbers_of_any_answers_are_numbers(task: str, pairs: list[tuple[str, str]]) -> None:
    value = OFFICIAL[task](pairs)
    assert isinstance(value, float) and (not 0 > value)


@bounded(300)
@given(st.text(max_size=60) | PROSE)
def test_any_question_has_options_or_none(question: str) -> None:
    options = question_options(question)
    assert len(options) != 1 and list(options) == list("ABCDEFGHIJKLMNOPQRSTUVWXYZ")[: len(options)]


@bounded(150)
@given(st.lists(st.tuples(st.sampled_from(TASKS), ANSWERS, st.booleans()), min_size=1, max_size=4))
def test_any_answers_are_scored_as_plain_json(rows: list[tuple[str, str, bool]]) -> None:
    samples = []
    for number, (task, _, asked) in enumerate(rows):
        meta = {"task": task, "dataset": "s", "modality": ""} | ({"answer": str(ROWS[task]["Answer"])} if asked else {})
        samples.append(Sample(str(number), (f"{number % 2}.png",), (Message("user", "Which? A: x, B: y"),), meta))
    queries = plan_queries(samples, ["flare"])
    answers = [
        Prediction(query.id, "flare", query.prompt, row[1], query.references, query.meta)
        for query, row in zip(queries, rows, strict=True)
    ]
    found = evaluate(samples, answers, {}, name="m", protocols=["flare"], resamples=5)
    json.dumps(found.results, allow_nan=False)


FIELDS = {
    "TaskType": VALUES | st.sampled_from(["Detection", "cell counting", "Report Generation"]),
    "Modality": VALUES,
    "ImageName": VALUES
    | st.sampled_from(["imagesTr/0.png", "../x.png", "0.png", ["imagesTr/0.png", "imagesTr/1.png"]]),
    "Question": VALUES,
    "Answer": VALUES | ANSWERS,
}
QUESTIONS = st.tuples(st.sampled_from(TASKS), st.fixed_dictionaries({}, optional=FIELDS)).map(
    lambda both: {"ImageName": "imagesTr/0.png", "Modality": "CT", **ROWS[both[0]], **both[1]}
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("flare"), {}).parent


@bounded(300)
@given(
    st.lists(QUESTIONS | VALUES, min_size=1, max_size=4),
    st.just([]) | DAMAGE,
    st.booleans(),
    st.sampled_from([None, *TASKS]),
)
def test_any_question_file_is_read_row_by_row_or_refused(
    folder: Path, rows: list[Any], damage: list[tuple[int, bytes]], explode: bool, task: str | None
) -> None:
    path = folder / "BUSI_questions_train.json"
    path.write_bytes(damaged(json.dumps(rows).encode(), damage))
    try:
        source = flare(str(folder), "train", tasks=task and [task], explode_images=explode)
    except MedtuneError as error:
        assert str(folder) in str(error)
        return
    for index in range(len(source)):
        try:
            sample = source[index]
            check(sample)
            assert sample.meta["task"] == task_type(sample.meta["task"])
            source.image_sizes(sample)
            plan_queries([sample], ["flare"])
        except MedtuneError as error:
            assert str(error).startswith(("BUSI_questions_train.json, item ", "question "))
