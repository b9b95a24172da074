"""Preferences of people: JSON Lines and Label Studio's export, majority, agreement, and files that are wrong."""

import json
from pathlib import Path
from typing import Any

import pytest

from medtune.data.sample import Message
from medtune.errors import DataError
from medtune.judges import HumanJudge
from medtune.judges.annotations import read_annotations
from medtune.judges.candidates import Candidate
from tests.judges.candidate_files import manifest_of, rows_of
from tests.recipe_modules import load_recipe


def row(id: str, preference: str, annotator: str = "ann", **changes: Any) -> dict[str, Any]:
    question = {"role": "user", "content": f"Question {id}?"}
    base = {"id": id, "images": [f"{id}.png"], "messages": [question], "answers": [f"{id} one", f"{id} two"]}
    return {**base, "preference": preference, "annotator": annotator, "comment": "", **changes}


def jsonl(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    return str(path)


def task(id: int, *annotations: dict[str, Any], **data: Any) -> dict[str, Any]:
    known = {
        "prompt": f"Question {id}?",
        "answer1": "one",
        "answer2": "two",
        "image": f"/data/local-files/?d=a/{id}.png",
    }
    return {"id": id, "data": {**known, **data}, "annotations": list(annotations)}


def compared(selected: str, by: object = 1, **more: Any) -> dict[str, Any]:
    result = {"from_name": "pair", "to_name": "a,b", "type": "pairwise", "value": {"selected": selected}}
    return {"completed_by": by, "result": [result], **more}


def chose(choice: str, by: object = 1, comment: str = "") -> dict[str, Any]:
    results: list[dict[str, Any]] = [{"from_name": "c", "type": "choices", "value": {"choices": [choice]}}]
    if comment:
        results.append({"from_name": "t", "type": "textarea", "value": {"text": [comment]}})
    return {"completed_by": by, "result": results}


def exported(path: Path, *tasks: dict[str, Any]) -> str:
    path.write_text(json.dumps(list(tasks)), encoding="utf-8")
    return str(path)


def test_json_lines_become_pairs_by_majority(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "p.jsonl",
        row("a", "first", "x"), row("a", "first", "y"), row("a", "second", "z"),
        row("b", "second", "x"), row("b", "both", "y"),
        row("c", "second", "x"),
        row("d", "neither", "x"), row("d", "neither", "y"),
        row("e", "first", "x"), row("e", "second", "y"),
    )  # fmt: skip
    words = ["--config", "judge/human", f"judge.annotations={path}", f"output_dir={tmp_path / 'out'}"]
    assert load_recipe("judge").main(words) == 0
    pairs = rows_of(tmp_path / "out/pairs.jsonl")
    assert [(pair["id"], pair["chosen"], pair["rejected"]) for pair in pairs] == [
        ("a", "a one", "a two"), ("c", "c two", "c one"),
    ]  # fmt: skip
    assert pairs[0]["scores"] == [2 / 3, 1 / 3] and pairs[0]["source"]["votes"] == [2, 1, 0]
    manifest = manifest_of(tmp_path)
    assert manifest["counts"]["ties"] == 3 and manifest["counts"]["judged"] == 5
    agreement = manifest["agreement"]
    assert (agreement["annotators"], agreement["candidates"], agreement["compared"]) == (3, 5, 6)
    assert agreement["observed"] == 2 / 6  # x and y on a and on d


def test_agreement_is_cohens_kappa(tmp_path: Path) -> None:
    chosen = [("first", "first")] * 4 + [("second", "second")] * 3 + [("first", "second")] * 2 + [("second", "first")]
    rows = [row(f"q{n}", choice, who) for n, pair in enumerate(chosen) for who, choice in zip("xy", pair, strict=True)]
    found = HumanJudge(jsonl(tmp_path / "p.jsonl", *rows)).agreement()
    by_chance = 0.6 * 0.5 + 0.4 * 0.5  # x says first six times in ten, y five times
    assert found["observed"] == 0.7 and abs(found["kappa"] - (0.7 - by_chance) / (1 - by_chance)) < 1e-12
    alone = HumanJudge(jsonl(tmp_path / "one.jsonl", row("a", "first"))).agreement()
    assert alone["observed"] is None and alone["kappa"] is None and alone["annotators"] == 1


def test_an_export_of_label_studio_is_read(tmp_path: Path) -> None:
    own = {"id": "own", "images": [], "messages": [{"role": "user", "content": "?"}], "answers": ["l", "r"]}
    path = exported(
        tmp_path / "export.json",
        task(1, compared("left", {"id": 7, "email": "a@clinic"}), compared("right", 8), chose("both", 9, "unclear")),
        task(2, compared("left", was_cancelled=True), chose("Neither"), image="b/2.png"),
        {"id": 3, "data": own, "annotations": [compared("right")]},
        task(4),
    )  # fmt: skip
    found = read_annotations(path)
    assert [(one.candidate.id, one.preference, one.annotator, one.comment) for one in found] == [
        ("1", "first", "7", ""), ("1", "second", "8", ""), ("1", "both", "9", "unclear"), ("2", "neither", "1", ""),
        ("own", "second", "1", ""),
    ]  # fmt: skip
    assert [one.candidate.images for one in found[::3]] == [("a/1.png",), ("b/2.png",)]
    assert found[0].candidate.answers == ("one", "two") and found[0].candidate.question == "Question 1?"


def test_other_names_of_a_label_studio_project(tmp_path: Path) -> None:
    made = task(1, compared("right"), q="Which?", left="l", right="r", key="k1")
    path = exported(tmp_path / "export.json", made)
    fields = {"question": "q", "first": "left", "second": "right", "id": "key"}
    (one,) = read_annotations(path, fields=fields)
    assert (one.candidate.id, one.candidate.question, one.candidate.answers) == ("k1", "Which?", ("l", "r"))
    with pytest.raises(DataError, match="unknown name 'left'"):
        read_annotations(path, fields={"left": "l"})


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([row("a", "third")], "line 1 .id 'a'.: 'preference' must be one of first, second, both, neither"),
        ([row("a", "first"), row("a", "second")], "this annotator has chosen already, in p.jsonl, line 1"),
        ([row("a", "first", "x"), row("a", "first", "y", answers=["1", "2"])], "differ from those in p.jsonl, line 1"),
        ([row("a", "first", answers=["one"])], "'answers' must be a list of two texts"),
        ([row("a", "first", annotator=["x"])], "'annotator' and 'comment' must be texts"),
        ([row("a", "first", messages=[{"role": "assistant", "content": "x"}])], "must end with the user's turn"),
        ([], "holds no preference"),
    ],
)  # fmt: skip
def test_a_wrong_row_is_named(rows: list[dict[str, Any]], says: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=says):
        read_annotations(jsonl(tmp_path / "p.jsonl", *rows))


@pytest.mark.parametrize(
    ("tasks", "says"),
    [
        ([task(1, compared("up"))], "task 1 .id '1'.: an annotation chooses neither an answer"),
        ([task(1, {"completed_by": 1, "result": []})], "task 1 .id '1'.: an annotation chooses neither"),
        ([task(1, {"completed_by": 1, "result": [{"type": "pairwise"}]})], "a result has no value"),
        ([task(1, compared("left"), image="https://clinic/1.png")], "the image is no path below the image root"),
        ([task(1, compared("left"), image="/data/upload/1.png")], "the image is no path below the image root"),
        ([task(1, compared("left"), answer2=None)], "data has no text 'answer2'; say under fields.second"),
        ([{"id": 1, "prompt": "x"}], "a task must have 'data'; export the project as JSON .not JSON-MIN."),
        ([task(1, compared("left"), compared("left"))], "this annotator has chosen already"),
        ([], "holds no preference"),
    ],
)  # fmt: skip
def test_a_wrong_task_is_named(tasks: list[dict[str, Any]], says: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=says):
        read_annotations(exported(tmp_path / "e.json", *tasks))


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_annotations(tmp_path / "none.jsonl")
    (tmp_path / "torn.json").write_text('[{"id": 1,')
    with pytest.raises(DataError, match="not valid JSON; export the project"):
        read_annotations(tmp_path / "torn.json")
    (tmp_path / "torn.jsonl").write_text('{"id": 1,')
    with pytest.raises(DataError, match="torn.jsonl, line 1"):
        read_annotations(tmp_path / "torn.jsonl")


def test_candidates_of_another_file_must_be_the_annotated_ones(tmp_path: Path) -> None:
    judge = HumanJudge(jsonl(tmp_path / "p.jsonl", row("a", "second")))
    turns = (Message("user", "?"),)
    assert judge.judge(Candidate("a", (), turns, answers=("a one", "a two")), list, None).preferred == 1
    assert judge.judge(Candidate("b", (), turns, answers=("b one", "b two")), list, None).reason == "not_annotated"
    with pytest.raises(DataError, match="candidate 'a': p.jsonl, line 1 compares other answers"):
        judge.judge(Candidate("a", (), turns, answers=("a two", "a one")), list, None)
