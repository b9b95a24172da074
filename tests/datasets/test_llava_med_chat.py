"""LLaVA-Med's chat questions: the counts of the papers' tables, and what a wrong row says."""

import json
from pathlib import Path
from typing import Any

import pytest

from medtune.data.sample import Sample
from medtune.datasets.llava_med_chat import DOMAINS, prepare_llava_med_chat
from medtune.errors import DataError

ROW: dict[str, Any] = {
    "question_id": 0,
    "image": "a.jpg",
    "pair_id": "a",
    "text": "What is shown?\n<image>",
    "gpt4_answer": "A cell.",
    "fig_caption": "A white blood cell.",
    "in_text_mention": [{"tokens": "Fig. 1 shows it.", "entities": []}],
    "domain": dict.fromkeys(DOMAINS, False) | {"histology": True, "gross": True},
    "type": "conversation",
}


def written(folder: Path, *rows: Any) -> str:
    path = folder / "questions.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def one(folder: Path, **changes: Any) -> Sample:
    row = {name: value for name, value in {**ROW, **changes}.items() if value is not ...}
    (sample,) = prepare_llava_med_chat(written(folder, row)).splits["test"]
    return sample


def test_a_question_keeps_its_words_and_what_is_known_of_the_figure(tmp_path: Path) -> None:
    sample = one(tmp_path)
    assert (sample.id, sample.images) == ("0", ("a.jpg",))
    assert [(turn.role, turn.content) for turn in sample.messages] == [("user", "What is shown?\n<image>")]
    assert sample.meta == {
        "attribute": "histology",
        "question_type": "conversation",
        "caption": "A white blood cell.",
        "mentions": ["Fig. 1 shows it."],
        "answer": "A cell.",
    }


def test_a_reference_answer_may_be_absent(tmp_path: Path) -> None:
    assert "answer" not in one(tmp_path, gpt4_answer=...).meta and "answer" not in one(tmp_path, gpt4_answer=None).meta


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"image": ...}, "the field 'image' is missing"),
        ({"text": " "}, "the field 'text' is missing"),
        ({"type": 3}, "the field 'type' is missing or no text"),
        ({"gpt4_answer": ""}, "the field 'gpt4_answer' is missing"),
        ({"question_id": None}, "'question_id' must be"),
        ({"fig_caption": ...}, "the caption must be a text"),
        ({"in_text_mention": [3]}, "mentions must be a list of texts"),
        ({"domain": {"pet": True}}, "'domain' names none of chest_xray"),
        ({"domain": ["mri"]}, "'domain' must be an object"),
        ({"text": "<image><image>What?"}, "2 <image> tags for 1 images"),
    ],
)
def test_a_wrong_row_is_named_without_its_texts(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="questions.jsonl, line 1") as caught:
        one(tmp_path, **changes)
    assert says in str(caught.value) and "blood" not in str(caught.value)


def test_files_without_questions_and_ids_that_occur_twice_are_refused(tmp_path: Path) -> None:
    for rows, says in (
        ([ROW, {**ROW, "image": "b.jpg"}], "line 2: the question_id '0' occurs twice"),
        ([ROW, "{"], "line 2"),
        ([[1]], "line 1: a question must be a JSON object"),
        ([""], "holds no question"),
    ):
        with pytest.raises(DataError, match=says):
            prepare_llava_med_chat(written(tmp_path, *rows))
    with pytest.raises(DataError, match="does not exist"):
        prepare_llava_med_chat(str(tmp_path / "none.jsonl"))


def test_the_real_file_has_the_counts_of_the_papers_table_2(medtune_data: Path) -> None:
    path = medtune_data / "llava_med/llava_med_eval_qa50_qa.jsonl"
    if not path.is_file():
        pytest.skip("LLaVA-Med's chat questions are not here")
    prepared = prepare_llava_med_chat(str(path))
    samples = list(prepared.splits["test"])
    assert len(samples) == 193 and len({sample.images for sample in samples}) == 50
    assert prepared.summary["domains"] == {"chest_xray": 37, "ct_scan": 40, "gross": 34, "histology": 44, "mri": 38}
    assert prepared.summary["question_types"] == {"conversation": 143, "detailed_description": 50}
    assert prepared.summary["with_reference"] == 193 and prepared.summary["of_several_domains"] == 8
