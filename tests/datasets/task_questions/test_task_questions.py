"""Question-task pairs: rows of files, templates, texts of no task, and the division by distinct wording."""

import json
from collections import Counter

import pytest

from medtune.datasets.flare.task_types import TASKS
from medtune.datasets.task_questions import task_questions, unseen_task_questions
from medtune.datasets.task_questions.rows import from_templates, read_asset, wording
from medtune.errors import ConfigError, DataError

MISSING = ("multi_label_classification", "instance_detection", "report_generation")


def texts(source):
    return [source[row].messages[0].content for row in range(len(source))]


def tasks(source):
    return Counter(source[row].meta["task"] for row in range(len(source)))


def write(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


@pytest.fixture
def file(tmp_path):
    rows = [{"question": f"How many cells, version {n}?", "task": "counting"} for n in range(10)]
    rows += [{"Question": f"<image> Estimate value {n}", "TaskType": "Regression"} for n in range(10)]
    return write(tmp_path / "rows.jsonl", rows + rows[:7])


def test_each_wording_occurs_once_and_in_one_split(file):
    splits = {name: task_questions(name, files=file, templates=MISSING) for name in ("train", "val", "test", "all")}
    found = {name: {wording(text) for text in texts(source)} for name, source in splits.items()}
    assert sum(len(found[name]) for name in ("train", "val", "test")) == len(found["all"]) == len(splits["all"])
    assert found["train"] | found["val"] | found["test"] == found["all"]
    for name, count in (("train", 6), ("val", 2), ("test", 2)):
        assert tasks(splits[name])["counting"] == tasks(splits[name])["regression"] == count


def test_the_same_words_in_other_capitals_and_spaces_are_one_wording(tmp_path):
    rows = [
        {"question": text, "task": "counting"}
        for text in ("How many  cells?", "how many cells?", "<image>\nHOW many cells?")
    ]
    assert len(task_questions("all", files=write(tmp_path / "a.json", rows), no_task=[])) == 1


def test_all_texts_of_a_template_are_in_one_split():
    place = {}
    for name in ("train", "val", "test"):
        source = task_questions(name, templates=TASKS, no_task=[])
        for row in range(len(source)):
            template = source[row].id.rpartition("/")[0]
            assert place.setdefault(template, name) == name
    assert len(place) == sum(map(len, read_asset("templates.json")["tasks"].values()))


def test_another_seed_divides_in_another_way_and_the_same_seed_alike(file):
    first, again, other = (task_questions("test", files=file, seed=seed, no_task=[]) for seed in (0, 0, 1))
    assert texts(first) == texts(again) and set(texts(first)) != set(texts(other))
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()


def test_kept_tasks_leave_the_division_as_it_is(file):
    whole, kept = (task_questions("test", files=file, keep=keep, no_task=[]) for keep in (None, ["counting"]))
    assert set(texts(kept)) == {text for text in texts(whole) if "cells" in text} and tasks(kept).keys() == {"counting"}


def test_templates_leave_no_gap_and_are_of_their_task():
    for task in TASKS:
        made = list(from_templates([task], 3, 0))
        assert len(made) > 20 and all(pair.task == task for pair in made)
        assert not any("{study}" in pair.text or "{{" in pair.text for pair in made)


def test_texts_of_no_task_are_of_the_kinds_that_are_asked_for():
    source = task_questions("all", no_task=["letters", "symbols"], made_up=5)
    assert Counter(source[row].meta["origin"] for row in range(len(source))) == {"letters": 5, "symbols": 5}
    assert tasks(source) == {"none": 10}
    signs = [text for text in texts(source) if not any(letter.isalpha() for letter in text)]
    assert len(signs) == 5


def test_no_text_of_an_unseen_task_is_also_a_template_or_a_text_of_no_task():
    unseen = unseen_task_questions()
    known = {wording(text) for text in texts(task_questions("all", templates=TASKS))}
    assert not known & {wording(text) for text in texts(unseen)} and not tasks(unseen).keys() & {*TASKS, "none"}
    assert tasks(unseen_task_questions(["segmentation"])) == {"segmentation": 4}


def test_questions_of_another_data_set_are_read_by_their_task(tmp_path):
    rows = [
        {"id": "7", "messages": [{"role": "user", "content": "<image>Count"}, {"role": "assistant", "content": "3"}],
         "images": ["a.png"], "meta": {"task": "counting"}},
    ]  # fmt: skip
    component = {"_component_": "medtune.datasets.jsonl_dataset", "source": write(tmp_path / "s.jsonl", rows)}
    source = task_questions("all", sources=[component], no_task=[])
    assert texts(source) == ["Count"] and tasks(source) == {"counting": 1} and source.image_sizes(source[0]) == []


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question": "secret", "task": "segmentation"}, "row 1: the task is unknown; known are classification"),
        ({"question": "secret", "task": 7}, "row 1: the task is unknown"),
        ({"question": "  <image> ", "task": "counting"}, "row 1: the question is empty"),
        ({"question": None, "task": "counting"}, "row 1: the question is empty"),
        ({"question": "secret"}, "row 1: a row needs 'task' or 'TaskType'"),
        (
            {"question": "secret", "Question": "secret", "task": "counting"},
            "row 1: a row needs 'question' or 'Question'",
        ),
        ([1], "row 1: a row must be a JSON object"),
    ],
)
def test_a_row_that_is_no_pair_is_named_and_not_quoted(tmp_path, row, said):
    path = write(tmp_path / "bad.json", [row] if isinstance(row, dict) else [row])
    with pytest.raises(DataError, match=said) as raised:
        task_questions("all", files=path)
    assert "bad.json" in str(raised.value) and "secret" not in str(raised.value)


def test_a_wording_with_two_tasks_is_refused(tmp_path):
    rows = [{"question": "What is it?", "task": "counting"}, {"question": "what is it?", "task": "detection"}]
    with pytest.raises(DataError, match="has the task detection, and the same wording has counting"):
        task_questions("all", files=write(tmp_path / "two.jsonl", rows))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"split": "dev"}, "split: 'dev' is unknown"),
        ({"fractions": [0.5, 0.5, 0.5]}, "three shares"),
        ({"fractions": [1.0]}, "three shares"),
        ({"templates": ["segmentation"]}, "'segmentation' is none of the tasks"),
        ({"keep": ["segmentation"]}, "'segmentation' is none of the tasks"),
        ({"no_task": ["poems"]}, "no kind 'poems'"),
    ],
)
def test_wrong_arguments_are_refused(values, said):
    with pytest.raises(ConfigError, match=said):
        task_questions(**{"split": "all", **values})


def test_a_missing_file_and_an_empty_split_are_said(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        task_questions("all", files=str(tmp_path / "*.json"))
    with pytest.raises(DataError, match="has no question"):
        task_questions("all", no_task=[])
    with pytest.raises(ConfigError, match="kinds: 'x' is unknown"):
        unseen_task_questions(["x"])


def test_the_real_questions_are_137_wordings_of_four_tasks(medtune_data):
    pattern = str(medtune_data / "flare_task5/training/*/*/*_questions_train.json")
    source = task_questions("all", files=pattern, no_task=[])
    assert tasks(source) == {"classification": 79, "counting": 20, "detection": 19, "regression": 19}
