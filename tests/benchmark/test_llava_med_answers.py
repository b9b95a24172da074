"""Three real models' answers to VQA-RAD: the committed numbers are those of the answers, in both definitions."""

import json
import re

import pytest

from medtune.errors import DataError
from tests.benchmark.scripts import FOLDER, script

scored = script("llava_med_answers")


@pytest.fixture(scope="module")
def data(medtune_data):
    if not (medtune_data / "llava_med").is_dir():
        pytest.skip("LLaVA-Med's answers are not here: put llava_med into $MEDTUNE_DATA to run this test")
    return medtune_data


def test_the_committed_numbers_are_those_of_the_answers(data):
    committed = json.loads(scored.RESULT.read_text())
    found = scored.scores(data, resamples=20)
    assert found["questions"] == committed["questions"] == {"open": 179, "closed": 272}
    for name, model in found["models"].items():
        for key, number in model["overall"].items():
            saved = committed["models"][name]["overall"][key]
            assert (number["value"], number["n"]) == (pytest.approx(saved["value"], abs=1e-12), saved["n"]), (name, key)
            assert number["definition"] == saved["definition"]


def test_open_and_closed_questions_are_counted_apart_in_every_type(data):
    model = scored.scores(data, resamples=20)["models"]["LLaVA-Med, projection tuned on instructions"]
    types = model["attributes"].values()
    for name, total in (("open_recall", 179), ("closed_accuracy", 272), ("closed_accuracy_strict", 272)):
        assert sum(numbers[name]["n"] for numbers in types) == total
    weighted = sum(numbers["open_f1"]["n"] * (numbers["open_f1"]["value"] or 0) for numbers in types) / 179
    assert weighted == pytest.approx(model["overall"]["open_f1_micro"]["value"])


def test_the_table_of_the_evidence_is_the_committed_one():
    page = (FOLDER.parent / "docs/evidence.md").read_text()
    assert scored.markdown(json.loads(scored.RESULT.read_text())) in page


def test_answers_to_other_questions_are_refused(data, tmp_path):
    folder = tmp_path / "llava_med/vqa_rad_answers"
    folder.mkdir(parents=True)
    (tmp_path / "vqa_rad").symlink_to(data / "vqa_rad")
    lines = (data / "llava_med/vqa_rad_answers/answer-file-llava-zeorshot.jsonl").read_text().splitlines()
    name = "answer-file-llava-zeorshot.jsonl"
    for content, said in (
        (lines[1:], "450 answers to 451 questions"),
        ([lines[1], lines[0], *lines[2:]], "line 1: this answers another question"),
    ):
        (folder / name).write_text("\n".join(content))
        with pytest.raises(DataError, match=said):
            scored.scores(tmp_path)
    (folder / name).unlink()
    with pytest.raises(DataError, match=re.escape(name)):
        scored.scores(tmp_path)
