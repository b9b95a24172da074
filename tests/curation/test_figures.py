"""Figures and demonstrations: the layouts that are read, what is refused, and which demonstrations are drawn."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from medtune.curation.demonstrations import Demonstrations, demonstration_of, read_demonstrations
from medtune.curation.figures import MODALITIES, Figure, read_figures
from medtune.errors import ConfigError, DataError

OURS = {
    "id": "a",
    "image": "a.png",
    "domain": {"mri": True, "gross": False},
    "caption": "A knee.",
    "mentions": ["See."],
}
THEIRS = {
    "pair_id": "b_F1",
    "fig_caption": "A lung.",
    "in_text_mention": [{"tokens": "Fig . 1 shows it .", "entities": []}],
    "domain": {"ct_scan": True},
}
KNEE = Figure("a", "a.png", ("mri",), "A knee.", ("See.",))
LUNG = Figure("b_F1", "b_F1.jpg", ("ct_scan",), "A lung.", ("Fig . 1 shows it .",))


def written(path: Path, value: Any) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


@pytest.mark.parametrize(
    "value",
    [
        [OURS, THEIRS],
        json.dumps(OURS) + "\n\n" + json.dumps(THEIRS) + "\n",
        {"a": {**OURS, "id": "a"}, "b_F1": {key: value for key, value in THEIRS.items() if key != "domain"}
         | {"domain": ["ct_scan"]}},
    ],
    ids=["array", "lines", "object of rows by id"],
)  # fmt: skip
def test_figures_are_read_from_json_and_from_llava_meds_files(value: Any, tmp_path: Path) -> None:
    assert read_figures(written(tmp_path / "f.json", value)).rows == [KNEE, LUNG]


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    lines = "".join(json.dumps(figure.to_dict()) + "\n" for figure in (KNEE, LUNG))
    assert read_figures(written(tmp_path / "f.jsonl", lines)).rows == [KNEE, LUNG]


def test_a_figure_that_is_asked_about_twice_is_one_figure(tmp_path: Path) -> None:
    found = read_figures(written(tmp_path / "f.json", [{**THEIRS, "text": "What?"}, {**THEIRS, "text": "Where?"}]))
    assert (found.rows, found.repeated) == ([LUNG], 1)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({**OURS, "caption": "A patient"}, "item 2: the id 'a' belongs to another figure"),
        ({"image": "x.png", "caption": "A patient"}, "item 2: the row has no 'id'"),
        ({"id": " ", "image": "x.png", "caption": "A patient"}, "has no 'id'"),
        ({"id": "x", "caption": "A patient"}, "'image' must be"),
        ({"id": "x", "image": ["a", "b"], "caption": "A patient"}, "'image' must be"),
        ({"id": "x", "image": "x.png"}, "no 'caption'"),
        ({"id": "x", "image": "x.png", "caption": " "}, "no 'caption'"),
        ({**OURS, "id": "x", "domain": {"ultrasound": False}}, "unknown modality"),
        ({**OURS, "id": "x", "domain": {"mri": "A patient"}}, "true or false"),
        ({**OURS, "id": "x", "domain": 3}, "modality"),
        ({**OURS, "id": "x", "mentions": [3]}, "a mention must be"),
        ("A patient", "must be a JSON object"),
    ],
)
def test_a_wrong_row_is_named_and_not_quoted_and_can_be_left_out(row: Any, said: str, tmp_path: Path) -> None:
    path = written(tmp_path / "f.json", [OURS, row])
    with pytest.raises(DataError, match=said) as caught:
        read_figures(path)
    assert "patient" not in str(caught.value)
    refused: list[str] = []
    assert read_figures(path, lambda where, error: refused.append(where)).rows == [KNEE]
    assert refused == [f"{path}, item 2"]


@pytest.mark.parametrize(("text", "said"), [("[]", "no figure"), ("{broken", "line 1: this is not JSON")])
def test_a_file_without_figures_is_an_error(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        read_figures(written(tmp_path / "f.json", text))
    with pytest.raises(DataError, match="Cannot read"):
        read_figures(tmp_path / "absent.json")


def test_half_a_character_in_a_caption_is_replaced(tmp_path: Path) -> None:
    path = written(tmp_path / "f.json", '[{"id": "a", "image": "a.png", "caption": "x \\ud800 y"}]')
    assert read_figures(path).rows[0].caption.encode() == "x \ufffd y".encode()


def demonstration(name: str, *domains: str) -> dict[str, Any]:
    turns = [{"from": "human", "value": "What?\n<image>"}, {"from": "gpt", "value": f"Answer of {name}."}]
    row = {"pair_id": name, "fig_caption": f"Caption of {name}.", "domain": {one: True for one in domains}}
    return {**row, "conversations": turns}


def pool(*rows: dict[str, Any], per_modality: int = 1) -> Demonstrations:
    return Demonstrations(tuple(demonstration_of(row, "here") for row in rows), per_modality)


def test_several_answers_in_a_row_are_one_answer_of_several_paragraphs() -> None:
    row = demonstration("x", "mri")
    row["conversations"] += [{"from": "gpt", "value": "And more."}]
    assert demonstration_of(row, "here").turns == (("What?", "Answer of x.\nAnd more."),)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"domain": {"pet": True}}, "unknown modality"),
        ({"domain": {"mri": False}}, "names no modality"),
        ({"domain": {}}, "names no modality"),
        ({"conversations": []}, "must be a list"),
        ({"conversations": [{"from": "gpt", "value": "A."}]}, "must alternate"),
        ({"conversations": [{"from": "human", "value": "Q?"}]}, "last question has no answer"),
        ({"conversations": [{"from": "human", "value": "Q?"}] * 2}, "must alternate"),
        ({"conversations": [{"from": "nurse", "value": "Q?"}]}, "a turn must be"),
        ({"conversations": [{"from": "human", "value": "<image>"}]}, "a turn is empty"),
    ],
)
def test_a_demonstration_that_is_none_is_an_error(change: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=f"here.*{said}"):
        demonstration_of({**demonstration("x", "mri"), **change}, "here")


def test_an_id_that_two_demonstrations_have_is_an_error(tmp_path: Path) -> None:
    rows = [demonstration("x", "mri"), demonstration("x", "gross")]
    with pytest.raises(DataError, match="item 2: the id 'x' occurs twice"):
        read_demonstrations(written(tmp_path / "d.json", rows), per_modality=0)


def test_too_few_of_a_modality_is_an_error() -> None:
    rows = [demonstration(name, name) for name in MODALITIES]
    with pytest.raises(ConfigError, match="there are 1 of the modality chest_xray"):
        pool(*rows, per_modality=2)
    assert pool(*rows[:1], per_modality=0).drawn(KNEE) == []


def test_one_that_shows_two_modalities_is_drawn_once_and_fills_up_neither() -> None:
    rows = [demonstration("both", "chest_xray", "mri"), demonstration("lung", "chest_xray")]
    rows += [demonstration(name, name) for name in ("ct_scan", "histology", "gross")]
    for number in range(30):
        drawn = pool(*rows).drawn(Figure(str(number), f"{number}.png", (), "x"))
        assert Counter(one.figure.id for one in drawn) == Counter(["both", "lung", "ct_scan", "histology", "gross"])


def test_a_figure_is_no_example_for_itself() -> None:
    rows = [demonstration(name, name) for name in MODALITIES]
    ids = [one.figure.id for one in pool(*rows).drawn(Figure("other", "mri.jpg", (), "x"))]
    assert sorted(ids) == sorted(set(MODALITIES) - {"mri"})


def test_a_draw_depends_on_seed_and_id_alone() -> None:
    rows = [demonstration(f"{name}{number}", name) for name in MODALITIES for number in range(6)]
    every = [pool(*rows, per_modality=2).drawn(Figure(str(number), "x", (), "x")) for number in range(40)]
    assert every[3] == pool(*rows, per_modality=2).drawn(Figure("3", "y", ("mri",), "other"))
    assert len({tuple(one.figure.id for one in drawn) for drawn in every}) == 40
    other = Demonstrations(pool(*rows).pool, 2, seed=1)
    assert other.drawn(Figure("3", "x", (), "x")) != every[3]
    used = Counter(one.figure.id for drawn in every for one in drawn)
    assert len(used) == 30 and max(used.values()) < 30  # 40 draws of 2 from 6: 13 on average


def test_the_58_published_demonstrations(medtune_data: Path) -> None:
    path = medtune_data / "biomed_vital/clinician_few_shot_58.json"
    if not path.is_file():
        pytest.skip("the demonstrations are not here")
    found = read_demonstrations(path)
    assert len(found.pool) == 58
    counts = Counter(name for one in found.pool for name in one.figure.domains)
    assert counts == {"ct_scan": 28, "mri": 15, "chest_xray": 12, "gross": 2, "histology": 2}
    drawn = found.drawn(KNEE)
    assert len({one.figure.id for one in drawn}) == 10
    assert Counter(name for one in drawn for name in one.figure.domains).keys() == set(MODALITIES)
    itself = next(one.figure for one in found.pool if "gross" in one.figure.domains)
    assert len(found.drawn(itself)) == 9  # one of two gross specimens is left
    assert len(read_figures(path).rows) == 58


def test_llava_meds_questions_are_50_figures(medtune_data: Path) -> None:
    path = medtune_data / "llava_med/llava_med_eval_qa50_qa.jsonl"
    if not path.is_file():
        pytest.skip("the questions are not here")
    found = read_figures(path)
    assert (len(found.rows), found.repeated) == (50, 143)
