"""Captions and mentions of figures, in medtune's and in LLaVA-Med's layout."""

import json
from pathlib import Path

import pytest

from medtune.datasets.figure_captions import Figure, read_figures
from medtune.errors import DataError

LLAVA = {"pair_id": "12_F2", "imgs": "12_F2.jpg", "fig_caption": "A scan.", "in_text_mention": [{"tokens": "See it ."}]}


@pytest.mark.parametrize("array", [True, False])
def test_a_caption_is_found_by_each_name_of_its_image(tmp_path: Path, array: bool) -> None:
    given = [LLAVA, {"image": "far/a.png", "caption": "A cell.", "mentions": ["One."]}]
    text = json.dumps(given) if array else "".join(json.dumps(row) + "\n" for row in given)
    (tmp_path / "c.json").write_text(text)
    found = read_figures(tmp_path / "c.json")
    assert {found[name] for name in ("12_F2", "12_F2.jpg")} == {Figure("A scan.", ("See it .",))}
    assert {found[name] for name in ("far/a.png", "a.png", "a")} == {Figure("A cell.", ("One.",))}


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([{"caption": "x"}], "item 1: a caption needs one of id"),
        ([{"id": "1"}], "item 1: the caption must be a text"),
        ([{"id": "1", "caption": None}], "item 1: the caption must be a text"),
        ([{"id": "1", "caption": "x", "mentions": "y"}], "item 1: mentions must be a list"),
        ([{"id": "1", "caption": "x", "mentions": [{"text": "y"}]}], "item 1: mentions must be a list"),
        ([{"id": "1", "caption": "x"}, {"id": 1, "caption": "y"}], "item 2: '1' has another caption in c.json, item 1"),
        (["x"], "item 1: a row must be a JSON object"),
        ([], "holds no caption"),
    ],
)
def test_rows_that_are_no_caption_are_named(tmp_path: Path, rows: list[object], told: str) -> None:
    (tmp_path / "c.json").write_text(json.dumps(rows))
    with pytest.raises(DataError, match=told):
        read_figures(tmp_path / "c.json")


def test_a_file_that_is_gone_or_cut_off_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_figures(tmp_path / "none.json")
    (tmp_path / "c.json").write_text('[{"id": "1",')
    with pytest.raises(DataError, match="not valid JSON"):
        read_figures(tmp_path / "c.json")


def test_the_captions_of_clinicians_demonstrations_are_read(medtune_data: Path) -> None:
    path = medtune_data / "biomed_vital" / "clinician_few_shot_58.json"
    if not path.is_file():
        pytest.skip("the demonstrations are not here")
    found = read_figures(path)
    assert found["28104940_F2"].caption.startswith("Computed tomography") and found["28104940_F2"].mentions
