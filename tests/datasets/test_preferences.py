"""Preference pairs from JSON Lines and from STLLaVA-Med's JSON; rows that are no pair are named."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from medtune.data.source import SampleSource
from medtune.datasets import jsonl_dataset, preference_dataset, preference_json_dataset, rendered_cells_dataset
from medtune.datasets.preferences import rejected_answer
from medtune.errors import DataError

ROW: dict[str, Any] = {
    "id": "7",
    "images": ["a.png"],
    "messages": [{"role": "user", "content": "What is shown?"}],
    "chosen": "A monocyte.",
    "rejected": "A dog.",
}
QUESTION = {"from": "human", "value": "<image>\nWhat is shown?"}
OFFICIAL = {
    "image": "a.png",
    "chosen_conversations": [QUESTION, {"from": "gpt", "value": "A monocyte."}],
    "reject_conversations": [QUESTION, {"from": "gpt", "value": "A dog."}],
}


def written(folder: Path, *rows: dict[str, Any]) -> SampleSource:
    Image.new("RGB", (8, 6)).save(folder / "a.png")
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return preference_dataset(str(folder / "pairs.jsonl"), str(folder))


def test_a_pair_is_a_sample_that_ends_in_the_chosen_answer(tmp_path: Path) -> None:
    more = {"margin": 3.5, "scores": [8, 4.5], "source": "judge", "meta": {"question": "q1"}}
    source = written(tmp_path, {**ROW, **more}, {**ROW, "id": "8", "images": [], "weight": 0.5})
    assert [source[0].weight, source[1].weight] == [1.0, 0.5]
    sample = source[0]
    assert [(turn.role, turn.content) for turn in sample.messages] == [
        ("user", "What is shown?"),
        ("assistant", "A monocyte."),
    ]
    assert sample.id == "7" and source.image_sizes(sample) == [(8, 6)]
    assert sample.meta == {
        "question": "q1",
        "margin": 3.5,
        "scores": [8, 4.5],
        "source": "judge",
        "rejected": "A dog.",
    }
    assert rejected_answer(source, sample) == "A dog." and source[1].images == ()


def test_the_authors_layout_gives_the_same_pair(tmp_path: Path) -> None:
    (tmp_path / "dpo.json").write_text(json.dumps([OFFICIAL, {**OFFICIAL, "id": "named"}]))
    source = preference_json_dataset(str(tmp_path / "dpo.json"), str(tmp_path))
    assert [source[0].id, source[1].id] == ["dpo:1", "named"]
    assert [turn.content for turn in source[0].messages] == ["<image>\nWhat is shown?", "A monocyte."]
    assert source[0].images == ("a.png",) and rejected_answer(source, source[0]) == "A dog."


@pytest.mark.parametrize("layout", ["json_lines", "authors"])
def test_images_are_cropped_and_padded_as_those_of_the_other_datasets(layout: str, tmp_path: Path) -> None:
    picture = Image.new("RGB", (8, 4), "red")
    picture.paste("blue", (2, 1, 6, 3))
    picture.save(tmp_path / "a.png")
    read, row = (preference_dataset, ROW) if layout == "json_lines" else (preference_json_dataset, OFFICIAL)
    path, root = tmp_path / "pairs.jsonl", str(tmp_path)
    path.write_text(json.dumps(row) + "\n")
    whole, cropped, square = (
        read(str(path), root, **change)
        for change in ({}, {"center_crop": 0.5}, {"center_crop": 0.5, "pad_to_square": 4})
    )
    plain = tmp_path / "plain.jsonl"
    plain.write_text(json.dumps({key: ROW[key] for key in ("id", "images", "messages")}) + "\n")
    other = jsonl_dataset(str(plain), root, 0.5, 4)
    expected = other.open_images(other[0])[0]
    assert square.open_images(square[0])[0].tobytes() == expected.tobytes()
    assert expected.size == (4, 4) and set(expected.get_flattened_data()) == {(0, 0, 0), (0, 0, 255)}
    sizes = [source.image_sizes(source[0]) for source in (whole, cropped, square)]
    assert sizes == [[(8, 4)], [(4, 2)], [(4, 4)]]
    assert sizes == [[source.open_images(source[0])[0].size] for source in (whole, cropped, square)]
    assert rejected_answer(square, square[0]) == "A dog."
    assert len({source.fingerprint() for source in (whole, cropped, square)}) == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"chosen": " "}, "line 1: the chosen answer is empty"),
        ({"rejected": ""}, "line 1: the rejected answer is empty"),
        ({"rejected": None}, "line 1: the rejected answer is empty or no text"),
        ({"messages": [*ROW["messages"], {"role": "assistant", "content": "x"}]}, "must end in the user's turn"),
        ({"messages": []}, "must end in the user's turn"),
        ({"messages": "What is shown?"}, "must end in the user's turn"),
        ({"reject": "A dog."}, "unknown field 'reject'; .* Did you mean 'rejected'"),
        ({"meta": {"rejected": "x"}}, "'meta' must not hold 'rejected'"),
        ({"meta": []}, "'meta' must be an object"),
        ({"images": 3}, "'images' must be a list of paths"),
    ],
)
def test_a_row_that_is_no_pair_is_named_with_the_reason(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"pairs.jsonl, line 1.*{said.removeprefix('line 1: ')}"):
        written(tmp_path, {**ROW, **change})[0]


@pytest.mark.parametrize("name", ["id", "messages", "chosen", "rejected"])
def test_a_missing_field_is_named(name: str, tmp_path: Path) -> None:
    row = {key: value for key, value in ROW.items() if key != name}
    with pytest.raises(DataError, match=f"line 1: the field '{name}' is missing"):
        written(tmp_path, row)[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"reject_conversations": None}, "needs the lists chosen_conversations and reject_conversations"),
        ({"reject_conversations": [QUESTION]}, "reject_conversations must end in a question and its answer"),
        ({"chosen_conversations": [{"from": "gpt", "value": "A dog."}]}, "chosen_conversations must end in a question"),
        (
            {"reject_conversations": [{"from": "human", "value": "Else?"}, {"from": "gpt", "value": "A dog."}]},
            "the two conversations differ before their last answer",
        ),
        ({"chosen_conversations": [QUESTION, {"from": "gpt", "value": ""}]}, "the chosen answer is empty"),
        ({"chosen_conversations": [QUESTION, "A dog."]}, "a turn needs 'value' and a 'from'"),
    ],
)
def test_an_item_that_is_no_pair_is_named_with_the_reason(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    (tmp_path / "dpo.json").write_text(json.dumps([{**OFFICIAL, **change}]))
    with pytest.raises(DataError, match=f"dpo.json, item 1.*{said}"):
        preference_json_dataset(str(tmp_path / "dpo.json"))[0]


def test_a_sample_of_other_data_has_no_rejected_answer() -> None:
    source = rendered_cells_dataset(size=1, seed=1, kind="questions")
    with pytest.raises(DataError, match=r"no rejected answer; take preference pairs \(medtune.datasets.preference_"):
        rejected_answer(source, source[0])


def test_rendered_pairs_hold_a_right_and_a_wrong_answer_to_one_question() -> None:
    source = rendered_cells_dataset(size=30, seed=4, kind="preferences")
    for index in range(30):
        sample = source[index]
        name, cell = sample.meta["attribute"], source.attributes(index)
        assert cell[name] in sample.messages[-1].content
        assert rejected_answer(source, sample) != sample.messages[-1].content
        assert name in sample.messages[0].content and name in rejected_answer(source, sample)
