"""Answers of two models to the same questions: what the judge is asked, and how often the second model wins."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from medtune.evaluation.prediction import Prediction
from medtune.judges.base import Judgement
from medtune.judges.candidates import Candidate
from medtune.judges.comparison import ComparedAnswers, win_rate
from tests.judges.candidate_files import judge, manifest_of, rows_of, write_candidates
from tests.judges.judge_server import MODEL, serve


def write_answers(path: Path, answers: Mapping[int, str], swapped: bool = True) -> Path:
    """Answers to questions about images of :func:`write_candidates`; question 0 is asked on another image too."""
    rows = [
        Prediction(f"q{number}", "vqa", f"Question {number}?", text, (), {"images": [f"{number}.png"]})
        for number, text in answers.items()
    ]
    if swapped:
        rows.append(Prediction("q0/swapped", "vqa", "Question 0?", "?", (), {"images": ["1.png"], "swapped": True}))
    path.write_text("".join(json.dumps(row.to_dict()) + "\n" for row in rows))
    return path


def compared(folder: Path, url: str, *more: str, out: str = "out") -> list[str]:
    return [
        "--config", "judge/openai_server", "candidates=null",
        f"compare=[{folder / 'one.jsonl'},{folder / 'two.jsonl'}]",
        f"image_root={folder / 'images'}", f"output_dir={folder / out}", f"server.base_url={url}",
        f"server.model={MODEL}", *more,
    ]  # fmt: skip


def test_the_win_rate_is_that_of_the_second_model_and_ties_count_half(tmp_path: Path) -> None:
    write_candidates(tmp_path, 5)
    write_answers(tmp_path / "one.jsonl", {0: "A long answer.", 1: "Short.", 2: "Same.", 3: "Equal", 4: ""})
    write_answers(tmp_path / "two.jsonl", {0: "Short.", 1: "A long answer.", 2: "Same.", 3: "equal", 4: "Short."})
    with serve() as server:
        assert judge(*compared(tmp_path, server.url)) == 0
    assert len(server.bodies) == 6  # both orders of three questions
    won = manifest_of(tmp_path)["win_rate"]
    assert {name: won[name] for name in ("wins", "ties", "identical", "losses", "left_out")} == {
        "wins": 1, "ties": 1, "identical": 1, "losses": 1, "left_out": 1,
    }  # fmt: skip
    assert won["rate"]["value"] == 0.5 and won["rate"]["n"] == 4 and won["rate"]["higher_is_better"]
    low, high = won["rate"]["interval"]
    assert 0 <= low < 0.5 < high <= 1
    assert [row["chosen"] for row in rows_of(tmp_path / "out/pairs.jsonl")] == ["Short.", "Short."]


def test_the_images_of_the_questions_are_sent(tmp_path: Path) -> None:
    write_candidates(tmp_path, 2)
    write_answers(tmp_path / "one.jsonl", {0: "One.", 1: "One."})
    write_answers(tmp_path / "two.jsonl", {0: "Another one.", 1: "Another one."})
    with serve() as server:
        assert judge(*compared(tmp_path, server.url)) == 0
    assert len(server.images) == 4 and len(set(server.images)) == 2


def test_a_comparison_in_which_nothing_wins_is_a_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_candidates(tmp_path, 2)
    for name in ("one.jsonl", "two.jsonl"):
        write_answers(tmp_path / name, {0: "Same.", 1: "Same."})
    with serve() as server:
        assert judge(*compared(tmp_path, server.url)) == 0
    assert server.bodies == [] and manifest_of(tmp_path)["win_rate"]["identical"] == 2
    assert "win rate 50.0%: 0 wins, 2 ties, 0 losses" in capsys.readouterr().out


def test_the_interval_is_over_images_and_not_over_questions() -> None:
    """Eight questions about two images, one image always won and one always lost: the interval spans everything."""
    asked = [Candidate(f"q{n}", (f"{n % 2}.png",), (), {}, answers=("a", "b")) for n in range(8)]
    done = {one.id: Judgement(one.id, (1.0, 2.0) if n % 2 else (2.0, 1.0)) for n, one in enumerate(asked)}
    won = win_rate(done, asked)
    assert won["rate"]["value"] == 0.5 and won["rate"]["interval"] == [0.0, 1.0]
    unread = win_rate({one.id: Judgement(one.id, None, "prose") for one in asked}, asked)
    assert unread["rate"]["value"] is None and unread["left_out"] == 8 and unread["rate"]["n"] == 0


@pytest.mark.parametrize(
    ("two", "message"),
    [
        ({0: "x"}, "answers 2 questions and .* 1, 1 of them the same"),
        ({}, "there are no answers to compare"),
    ],
    ids=["other questions", "none"],
)
def test_answers_to_other_questions_are_refused(tmp_path: Path, two: dict[int, str], message: str, capsys) -> None:
    write_candidates(tmp_path, 2)
    write_answers(tmp_path / "one.jsonl", {0: "x", 1: "y"})
    write_answers(tmp_path / "two.jsonl", two)
    assert judge(*compared(tmp_path, "http://127.0.0.1:9/v1")) == 2
    assert re.search(message, capsys.readouterr().err.replace("\n", " "))


def test_an_answer_to_another_wording_is_refused_without_its_text(tmp_path: Path, capsys) -> None:
    write_answers(tmp_path / "one.jsonl", {0: "x"})
    path = write_answers(tmp_path / "two.jsonl", {0: "x"})
    path.write_text(path.read_text().replace("Question 0?", "Secret?"))
    assert judge(*compared(tmp_path, "http://127.0.0.1:9/v1", "image_root=null")) == 2
    said = capsys.readouterr().err
    assert "question 'q0' has another prompt" in said and "Secret" not in said


def test_candidates_and_a_comparison_exclude_each_other(tmp_path: Path, capsys) -> None:
    for words in (["candidates=x.jsonl"], ["compare=[one.jsonl]"]):
        assert judge(*compared(tmp_path, "http://127.0.0.1:9/v1", *words)) == 2
        assert "compare takes two files of answers" in capsys.readouterr().err


def test_other_answers_in_the_same_folder_are_refused(tmp_path: Path, capsys) -> None:
    write_candidates(tmp_path, 1)
    write_answers(tmp_path / "one.jsonl", {0: "x"})
    write_answers(tmp_path / "two.jsonl", {0: "yyy"})
    with serve() as server:
        assert judge(*compared(tmp_path, server.url)) == 0
        write_answers(tmp_path / "two.jsonl", {0: "zzzzz"})
        assert judge(*compared(tmp_path, server.url)) == 2
    assert "output_dir" in capsys.readouterr().err


def test_swapped_questions_are_left_out(tmp_path: Path) -> None:
    one, two = (write_answers(tmp_path / name, {0: "x", 1: "y"}) for name in ("one.jsonl", "two.jsonl"))
    found = ComparedAnswers(one, two)
    assert len(found) == 2 and [found[n].images for n in range(2)] == [("0.png",), ("1.png",)]
