"""1,552 real answers to FLARE's questions: each is a value or a named reason, and the committed counts are theirs."""

import json

import pytest

from medtune.errors import DataError
from tests.benchmark.scripts import FOLDER, script

counted = script("flare_answers")


@pytest.fixture(scope="module")
def folder(medtune_data):
    return medtune_data / "flare_task5" / "model_answers"


def test_the_committed_counts_are_those_of_the_answers(folder):
    committed = json.loads(counted.RESULT.read_text())
    assert counted.counts(folder)["models"] == committed["models"]


def test_every_answer_is_a_value_or_a_named_reason():
    models = json.loads(counted.RESULT.read_text())["models"]
    cells = [cell for tasks in models.values() for sets in tasks.values() for cell in sets.values()]
    assert sum(cell["answers"] for cell in cells) == 1552
    assert all(cell["read"] + sum(cell["reasons"].values()) == cell["answers"] for cell in cells)
    assert all(cell["read"] == cell["answers"] for sets in models["tuned"].values() for cell in sets.values())


def test_the_table_of_the_document_is_the_committed_one():
    page = (FOLDER.parent / "docs/evaluation.md").read_text()
    assert counted.markdown(json.loads(counted.RESULT.read_text())) in page


@pytest.mark.parametrize(
    ("task", "answer", "counts"),
    [
        ("classification", "A", True),
        ("classification", "A: benign", False),
        ("detection", "[[1, 2, 3, 4]]", True),
        ("detection", "[1, 2, 3, 4]", False),
        ("detection", "```json\n[[1, 2, 3, 4]]\n```", False),
        ("instance_detection", '{"1": [[1, 2, 3, 4]]}', True),
        ("instance_detection", "{'1': [[1, 2, 3, 4]]}", False),
        ("counting", "3", True),
        ("regression", "33%", False),
        ("regression", "nan", False),
        ("report_generation", "", False),
    ],
)
def test_what_the_published_script_can_count(task, answer, counts):
    assert counted.official_form(task, answer) is counts


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "line 1: this is not valid JSON"),
        ('{"uid": "a:b", "task_type": "counting"}', "line 1: an answer needs the texts uid"),
        ('{"uid": "a:b", "task_type": "x", "prediction": "3"}', "line 1: the TaskType is unknown"),
    ],
)
def test_a_file_that_holds_something_else_is_refused(tmp_path, text, said):
    with pytest.raises(DataError, match="does not exist"):
        counted.counts(tmp_path)
    for file in counted.FILES.values():
        (tmp_path / file).write_text(text)
    with pytest.raises(DataError, match=said):
        counted.counts(tmp_path)
