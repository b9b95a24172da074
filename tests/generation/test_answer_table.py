"""predictions.csv: what a spreadsheet reads is what the model wrote."""

import csv
from pathlib import Path

import pytest

from medtune.data import writing
from medtune.evaluation.prediction import Prediction, write_predictions
from medtune.generation.answer_table import as_text, write_answer_table


def predicted(text: str, name: str = "a", **meta: object) -> Prediction:
    return Prediction(
        f"{name}/prompt", "prompt", "<image>\nWhat?", text, (), {"sample_id": name, "images": ["1.png"], **meta}
    )


def read(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.reader(file))


def test_lines_quotes_delimiters_and_umlauts_survive(tmp_path: Path) -> None:
    text = 'Größe: "groß", rund;\nzweite Zeile'
    write_predictions(tmp_path / "p.jsonl", [predicted(text, stopped=True), predicted("", "b", stopped=False)])
    found = read(write_answer_table(tmp_path / "p.jsonl"))
    assert found[1:] == [
        ["a", "1.png", "What?", text, "yes", "a/prompt", ""],
        ["b", "1.png", "What?", "", "no", "b/prompt", ""],
    ]


def test_answers_about_a_changed_question_are_told_from_real_ones(tmp_path: Path) -> None:
    rows = [predicted("x"), predicted("y", swapped=True, swapped_with="c"), predicted("z", probe="no_image")]
    write_predictions(tmp_path / "p.jsonl", [*rows, predicted("w", swapped=False, probe="")])
    header, *found = read(write_answer_table(tmp_path / "p.jsonl"))
    place = header.index("control")
    assert [(row[3], row[place]) for row in found] == [("x", ""), ("y", "swapped"), ("z", "no_image"), ("w", "")]


def test_likelihoods_are_no_answers(tmp_path: Path) -> None:
    write_predictions(tmp_path / "p.jsonl", [predicted("", scores=[-1.0, -2.0])])
    assert len(read(write_answer_table(tmp_path / "p.jsonl"))) == 1


@pytest.mark.parametrize("text", ["=1+1", "- no finding", "+ effusion", "@SUM(A1)", "\t=1", '=HYPERLINK("http://x")'])
def test_a_text_is_not_read_as_a_formula(text: str) -> None:
    assert as_text(text) == f"'{text}"


@pytest.mark.parametrize("text", ["-5", "+1.5", "-1,5", "none", "", "a=b"])
def test_numbers_and_plain_texts_stay(text: str) -> None:
    assert as_text(text) == text


def test_a_table_that_cannot_be_finished_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_predictions(tmp_path / "p.jsonl", [predicted("first")])
    old = write_answer_table(tmp_path / "p.jsonl").read_bytes()
    write_predictions(tmp_path / "p.jsonl", [predicted("second")])

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing, "flush", full)
    with pytest.raises(OSError, match="No space"):
        write_answer_table(tmp_path / "p.jsonl")
    assert (tmp_path / "p.csv").read_bytes() == old and [path.name for path in tmp_path.glob("*.tmp")] == []


def test_each_note_is_a_column(tmp_path: Path) -> None:
    first = predicted("7", notes={"route": "counting", "score": 0.5, "adapter": "counting"})
    rows = [predicted("plain", "b"), first, predicted("B", "c", notes={"score": None, "adapter": "=base", "new": 1})]
    write_predictions(tmp_path / "p.jsonl", rows)
    header, *found = read(write_answer_table(tmp_path / "p.jsonl"))
    assert header[-4:] == ["route", "score", "adapter", "new"]
    assert [row[-4:] for row in found] == [
        ["", "", "", ""],
        ["counting", "0.5", "counting", ""],
        ["", "", "'=base", "1"],
    ]
