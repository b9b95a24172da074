"""Questions with one answer out of conversations and candidates, and the text that the selection model reads."""

import json
from pathlib import Path

import pytest

from medtune.curation.records import read_records, records_of
from medtune.errors import DataError
from tests.curation.selector_data import annotation, conversation, write_lines


def test_each_turn_of_a_conversation_is_a_record_with_the_figures_texts() -> None:
    found = records_of(conversation(3), "rows.jsonl, line 1")
    assert [record.id for record in found] == ["v3/turn_1", "v3/turn_2"]
    assert [(record.row, record.image, record.caption, record.mentions) for record in found] == [
        ("v3", "3.png", "Caption 3.", "See it.")
    ] * 2
    assert (found[0].question, found[0].answer) == ("Question 0 of 3?", "Answer 0 of 3."), "without the image's tag"


def test_our_own_format_and_one_with_a_system_turn_give_the_same_records() -> None:
    row = conversation(1)
    said = [{"role": {"human": "user", "gpt": "assistant"}[turn["from"]], "content": turn["value"]}
            for turn in row["conversations"]]  # fmt: skip
    ours = {"id": "v1", "images": ["1.png"], "messages": [{"role": "system", "content": "S"}, *said],
            "meta": {"caption": "Caption 1.", "mentions": ["See it."]}}  # fmt: skip
    assert records_of(ours, "x") == records_of(row, "x")


def test_each_answer_of_a_candidate_is_a_record() -> None:
    first, second = records_of(annotation(2), "x")
    assert (first.id, second.id, first.row) == ("c2/answer_1", "c2/answer_2", "c2")
    assert (first.question, first.answer, second.answer) == ("What is in 2?", "good 2", "bad 2")
    assert first.caption == "Caption 2."


def test_question_and_answer_come_first_so_that_a_long_caption_cannot_push_them_out_of_77_tokens() -> None:
    open_clip = pytest.importorskip("open_clip")
    row = {**conversation(0, turns=1), "caption": "An axial view of the chest. " * 700}
    (record,) = records_of(row, "x")
    assert len(record.caption) > 19_000
    text = record.text()
    assert text.startswith("Question: Question 0 of 0? Answer: Answer 0 of 0. Caption: An axial")
    assert len(text) == 4000 and record.text(context=False) == "Question: Question 0 of 0? Answer: Answer 0 of 0."
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    (tokens,) = tokenizer([text])
    read = tokenizer.decode(tokens.numpy())
    assert len(tokens) == 77 and "answer 0 of 0" in read
    official = f"{record.caption} Question:{record.question}Answer:{record.answer}"
    assert "answer 0 of 0" not in tokenizer.decode(tokenizer([official])[0].numpy()), "as the official code orders them"


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ([], "a row must be a JSON object"),
        ({"conversations": []}, "no 'id'"),
        ({"id": "a", "image": "a.png"}, "no 'conversations' and no 'messages'"),
        ({"id": "a", "image": "a.png", "conversations": []}, "questions with an answer each"),
        ({"id": "a", "conversations": [{"from": "human", "value": "Q"}]}, "questions with an answer each"),
        (
            {"id": "a", "conversations": [{"from": "gpt", "value": "A"}, {"from": "human", "value": "Q"}]},
            "must alternate",
        ),
        ({"id": "a", "conversations": [{"from": "human"}]}, "list of"),
        ({"id": "a", "image": 3, "conversations": [{"from": "human", "value": "Q"}]}, "'image' must be the path"),
        ({**annotation(1), "answers": ["one"]}, "list of two texts"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_and_its_texts_are_not_quoted(row: object, what: str) -> None:
    with pytest.raises(DataError, match=f"rows, line 7.*{what}") as raised:
        records_of(row, "rows, line 7")
    assert "Caption" not in str(raised.value)


def test_double_ids_are_refused_or_left_out(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", [conversation(0), conversation(1), conversation(0)])
    with pytest.raises(DataError, match=r"line 3: the id 'v0' is also that of .*line 1"):
        read_records(path)
    refused: list[str] = []
    found = read_records(path, lambda where, error: refused.append(where))
    assert [record.row for record in found] == ["v0", "v0", "v1", "v1"] and len(refused) == 1


def test_a_json_array_is_read_too_and_a_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([conversation(0), conversation(1)]))
    assert len(read_records(path)) == 4
    broken = tmp_path / "rows.jsonl"
    broken.write_text(json.dumps(conversation(0)) + "\n{broken\n")
    with pytest.raises(DataError, match=r"rows.jsonl, line 2: this is not JSON"):
        read_records(broken)
    with pytest.raises(DataError, match="there is no such file"):
        read_records(tmp_path / "absent.jsonl")
