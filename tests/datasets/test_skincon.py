"""SKINCON in its owners' layout, with made-up rows: the real ones may not be passed on."""

import random
from pathlib import Path

import pytest

from medtune.datasets.skincon import EXCLUDED, FEATURES, prepare_skincon
from medtune.errors import ConfigError, DataError
from tests.datasets.owners import skincon_rows, write_picture, write_skincon


def test_the_columns_are_the_owners(medtune_data: Path) -> None:
    header = medtune_data / "skincon/header.csv"
    if not header.is_file():
        pytest.skip(f"the column layout is not in {header}")
    columns = header.read_text().splitlines()[0].split(",")
    assert columns == ["", "ImageID", *FEATURES, EXCLUDED] and len(FEATURES) == 48


def test_reports_are_lists_in_the_order_of_the_columns(tmp_path: Path) -> None:
    rows = skincon_rows()
    present = {"Papule": 1, "Scale": 1, "Brown(Hyperpigmentation)": 1}
    rows[7] = rows[7] | dict.fromkeys(FEATURES, 0) | present
    prepared = prepare_skincon(str(write_skincon(tmp_path, rows)), repeat_train=1)
    reports = {
        s.images[0]: s.messages[0].content for n in ("train", "val_reports", "test_reports") for s in prepared.splits[n]
    }
    assert reports[rows[7]["ImageID"]] == "papule, scale, brown(hyperpigmentation)"
    assert len(reports) == 57, "three of the sixty are excluded by the annotators"
    assert prepared.summary["excluded_by_the_annotators"] == 3
    assert not any(EXCLUDED.lower() in report for report in reports.values())


def test_the_column_of_row_numbers_is_no_feature(tmp_path: Path) -> None:
    """In row 1 that column holds a 1, as a feature's would."""
    rows = skincon_rows()
    assert rows[1][""] == 1
    prepared = prepare_skincon(str(write_skincon(tmp_path, rows)))
    samples = [s for split in prepared.splits.values() for s in split if s.images[0] == rows[1]["ImageID"]]
    expected = ", ".join(name.lower() for name in FEATURES if rows[1][name])
    assert samples and all(s.messages[-1].content == expected for s in samples)


def test_splits_are_drawn_as_published(tmp_path: Path) -> None:
    rows = skincon_rows(240)
    names = sorted(row["ImageID"] for row in rows if not row[EXCLUDED])
    random.Random(0).shuffle(names)
    prepared = prepare_skincon(str(write_skincon(tmp_path, rows)))
    size = len(names) // 10
    assert (len(names), size) == (228, 22)
    assert [s.images[0] for s in prepared.splits["val"]] == names[:size]
    assert [s.images[0] for s in prepared.splits["test"]] == names[size : 2 * size]
    assert [s.images[0] for s in prepared.splits["train"]] == 3 * names[2 * size :]
    assert len({s.id for s in prepared.splits["train"]}) == 3 * (228 - 44)
    other = prepare_skincon(str(tmp_path / "annotations_fitzpatrick17k.csv"), seed=1)
    assert [s.images for s in other.splits["val"]] != [s.images for s in prepared.splits["val"]]


def test_an_option_is_all_that_was_found_in_an_image(tmp_path: Path) -> None:
    prepared = prepare_skincon(str(write_skincon(tmp_path, skincon_rows(240))))
    combinations = {s.messages[0].content for n in ("train", "val_reports", "test_reports") for s in prepared.splits[n]}
    assert prepared.summary["combinations"] == len(combinations)
    places = set()
    for question in [*prepared.splits["val"], *prepared.splits["test"]]:
        options = question.meta["options"]
        assert question.messages[0].content == "What is the dermatologic feature?"
        assert question.meta["attribute"] == "dermatologic feature"
        assert len(set(options)) == 5 and set(options) <= combinations
        assert question.meta["answer"] == question.messages[1].content in options
        places.add(options.index(question.meta["answer"]))
    assert places == {0, 1, 2, 3, 4}
    majority = prepared.tables["training_majority"]["dermatologic feature"]
    reports = [s.messages[0].content for s in prepared.splits["train"]]
    assert reports.count(majority) == max(map(reports.count, set(reports)))


def test_images_without_a_feature_are_left_out_after_the_draw(tmp_path: Path) -> None:
    rows = skincon_rows()
    bare = rows[4]["ImageID"]
    whole = prepare_skincon(str(write_skincon(tmp_path / "a", rows)), repeat_train=1)
    rows[4] |= dict.fromkeys(FEATURES, 0)
    fewer = prepare_skincon(str(write_skincon(tmp_path / "b", rows)), repeat_train=1)
    assert fewer.summary["images_without_a_feature"] == 1
    for name in ("train", "val_reports", "test_reports"):
        kept = [s.id for s in whole.splits[name] if s.images[0] != bare]
        assert [s.id for s in fewer.splits[name]] == kept


def test_only_images_at_hand_take_part_where_they_are_given(tmp_path: Path) -> None:
    rows = skincon_rows()
    here = [row for row in rows if not row[EXCLUDED]][:-9]
    for number, row in enumerate(here):
        write_picture(tmp_path / "images" / row["ImageID"], number)
    (tmp_path / "images" / here[0]["ImageID"]).write_bytes(b"")
    table = str(write_skincon(tmp_path, rows))
    prepared = prepare_skincon(table, images=str(tmp_path / "images"))
    assert prepared.summary["images_not_readable"] == 10
    assert {image for image, _ in prepared.images()} == {row["ImageID"] for row in here[1:]}
    assert prepared.splits["val"] != prepare_skincon(table).splits["val"]
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="0 images are left, too few to split"):
        prepare_skincon(table, images=str(tmp_path / "none"))


def test_limits(tmp_path: Path) -> None:
    table = str(write_skincon(tmp_path, skincon_rows(240)))
    prepared = prepare_skincon(table, repeat_train=2, limit_train=5, limit_questions=4)
    assert prepared.counts() == {"train": 10, "val_reports": 22, "val": 4, "test_reports": 22, "test": 4}
    with pytest.raises(ConfigError, match="limit_train and limit_questions must be at least 1"):
        prepare_skincon(table, limit_questions=0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"Papule": 2}, "line 5: the cell of column 'Papule' must be 0 or 1"),
        ({"Papule": ""}, "line 5: the cell of column 'Papule' must be 0 or 1"),
        ({"ImageID": ""}, "line 5: the cell of column 'ImageID' is empty"),
    ],
)
def test_a_row_that_cannot_be(tmp_path: Path, change: dict, said: str) -> None:
    rows = skincon_rows()
    rows[3] |= change
    with pytest.raises(DataError, match=said):
        prepare_skincon(str(write_skincon(tmp_path, rows)))


def test_an_image_annotated_twice_and_a_missing_column(tmp_path: Path) -> None:
    rows = skincon_rows()
    with pytest.raises(DataError, match="line 62: the image .*jpg was annotated before, in .*line 2"):
        prepare_skincon(str(write_skincon(tmp_path, [*rows, rows[0]])))
    path = tmp_path / "annotations_fitzpatrick17k.csv"
    path.write_text(path.read_text().replace("Wheal", "Weal", 1))
    with pytest.raises(DataError, match="no column 'Wheal'; did you mean 'Weal'"):
        prepare_skincon(str(path))
