import csv
import random
from collections import Counter

import pytest

from medtune.data.images import ImageRoot
from medtune.datasets.wbcatt import ATTRIBUTES, prepare_wbcatt, read_cells
from medtune.errors import ConfigError, DataError

VALUES = {name: ("small", "big") for name in ATTRIBUTES} | {
    "granularity": ("no", "yes"),
    "granule_type": ("nil", "round"),
}


def write_tables(folder, change=None):
    """Three small tables of the owners' layout; ``change`` may alter the rows of a split."""
    folder.mkdir(exist_ok=True)
    rng = random.Random(0)
    for split, count in (("train", 40), ("val", 8), ("test", 12)):
        rows = [{name: rng.choice(values) for name, values in VALUES.items()} for _ in range(count)]
        rows = [row | {"path": f"wbc/{split}_{n}.jpg", "img_name": "ignored"} for n, row in enumerate(rows)]
        if change is not None:
            rows = change(split, rows)
        with (folder / f"pbc_attr_v1_{split}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    return str(folder)


def test_every_question_of_a_cell(tmp_path):
    prepared = prepare_wbcatt(write_tables(tmp_path / "a"))
    cell = read_cells(tmp_path / "a/pbc_attr_v1_test.csv")[3]
    asked = {s.meta["attribute"]: s for s in prepared.splits["test"] if s.id.startswith("test/test_3/")}
    assert set(asked) == {name.replace("_", " ") for name in cell.applicable()}
    question = asked["granularity"]
    assert question.messages[0].content == "What is the granularity?"
    assert question.messages[1].content == question.meta["answer"] == cell.values["granularity"]
    assert question.meta["options"] == ["yes", "no"] and question.images == ("wbc/test_3.jpg",)


def test_one_question_of_a_cell_is_drawn_from_those_that_apply(tmp_path):
    folder = write_tables(tmp_path / "a")
    prepared = prepare_wbcatt(folder, questions="one")
    assert prepared.counts() == {"train": 40, "val_reports": 8, "val": 8, "test_reports": 12, "test": 12}
    everything = {s.id for split in ("val", "test") for s in prepare_wbcatt(folder).splits[split]}
    drawn = [s.id for split in ("val", "test") for s in prepared.splits[split]]
    assert set(drawn) <= everything
    assert drawn == [s.id for split in ("val", "test") for s in prepare_wbcatt(folder, "one").splits[split]]
    assert drawn != [s.id for split in ("val", "test") for s in prepare_wbcatt(folder, "one", seed=1).splits[split]]


def test_limits_are_even_over_attributes_and_seeded(tmp_path):
    folder = write_tables(tmp_path / "a")
    prepared = prepare_wbcatt(folder, limit_train=7, limit_questions_per_attribute=3)
    assert len(prepared.splits["train"]) == 7
    for split in ("val", "test"):
        assert set(Counter(s.meta["attribute"] for s in prepared.splits[split]).values()) == {3}
    again = prepare_wbcatt(folder, limit_train=7, limit_questions_per_attribute=3)
    assert again.splits == prepared.splits
    other = prepare_wbcatt(folder, seed=1, limit_train=7, limit_questions_per_attribute=3)
    assert other.splits["train"] != prepared.splits["train"] and other.splits["test"] != prepared.splits["test"]
    assert other.tables == prepared.tables, "the majority is that of the whole training split"


def test_the_majority_is_that_of_training(tmp_path):
    def change(split, rows):
        return [row | {"label": "Monocyte" if split == "train" or n else "Basophil"} for n, row in enumerate(rows)] + (
            [rows[0] | {"label": "Basophil", "path": "wbc/more.jpg"}] if split == "train" else []
        )

    prepared = prepare_wbcatt(write_tables(tmp_path / "a", change))
    assert prepared.tables["training_majority"]["label"] == "Monocyte"
    assert "nil" not in prepared.summary["training_values"]["granule type"]


def test_a_value_that_training_does_not_know(tmp_path):
    def change(split, rows):
        return rows if split == "train" else [row | {"label": "Blast"} for row in rows]

    with pytest.raises(DataError, match="val/val_0/label: the value of 'label' does not occur in training"):
        prepare_wbcatt(write_tables(tmp_path / "a", change))


def test_an_image_in_two_splits(tmp_path):
    def change(split, rows):
        return [rows[0] | {"path": "wbc/same.jpg"}, *rows[1:]]

    with pytest.raises(DataError, match="wbc/same.jpg is in both train and val"):
        prepare_wbcatt(write_tables(tmp_path / "a", change))


def test_an_image_annotated_twice_and_an_empty_cell(tmp_path):
    def twice(split, rows):
        return [*rows, rows[1]]

    def empty(split, rows):
        return [rows[0], rows[1] | {"label": " "}, *rows[2:]]

    with pytest.raises(DataError, match=r"line 42: its image was annotated before, in .*line 3"):
        prepare_wbcatt(write_tables(tmp_path / "a", twice))
    with pytest.raises(DataError, match="line 3: the cell of column 'label' is empty"):
        prepare_wbcatt(write_tables(tmp_path / "b", empty))


def test_options_that_are_none(tmp_path):
    folder = write_tables(tmp_path / "a")
    with pytest.raises(ConfigError, match="'some' is unknown; use 'all'"):
        prepare_wbcatt(folder, questions="some")
    with pytest.raises(ConfigError, match="at least 1"):
        prepare_wbcatt(folder, limit_train=0)


@pytest.fixture(scope="module")
def annotations(medtune_data):
    folder = medtune_data / "wbcatt/annotations"
    if not folder.is_dir():
        pytest.skip(f"the WBCAtt annotations are not in {folder}")
    return str(folder)


def test_the_owners_tables_give_the_papers_counts(annotations):
    prepared = prepare_wbcatt(annotations, questions="one")
    assert prepared.counts() == {"train": 6169, "val_reports": 1030, "val": 1030, "test_reports": 3099, "test": 3099}
    complete = prepare_wbcatt(annotations).counts()
    # 12 attributes an image, less those that are nil: 257 + 257 in val, 810 + 809 in test.
    assert complete["val"] == 12 * 1030 - 514 == 11846
    assert complete["test"] == 12 * 3099 - 1619 == 35569
    assert complete["train"] == 6169


def test_the_first_report_and_questions_of_the_owners_tables(annotations):
    splits = prepare_wbcatt(annotations, questions="one").splits
    assert splits["train"][0].messages[0].content == (
        "big cell size, round cell shape, unsegmented-band nucleus shape, low nuclear cytoplasmic ratio, densely "
        "chromatin density, clear cytoplasm texture, light blue cytoplasm colour, granularity, small granule type, "
        "pink granule colour, Neutrophil"
    )
    lymphocyte = next(s for s in splits["val_reports"] if s.id == "val/LY_883318")
    assert lymphocyte.messages[0].content == (
        "small cell size, irregular cell shape, irregular nucleus shape, high nuclear cytoplasmic ratio, densely "
        "chromatin density, frosted cytoplasm texture, purple blue cytoplasm colour, Lymphocyte"
    )
    first = [(s.id, s.meta["answer"]) for s in splits["val"][:3] + splits["test"][:3]]
    assert first == OFFICIAL_DRAW
    assert (splits["test"][-1].id, splits["test"][-1].meta["answer"]) == ("test/EO_198556/granule_type", "round")


# What the published preprocessing draws from the same tables with its seed of 0.
OFFICIAL_DRAW = [
    ("val/BNE_422954/cell_shape", "round"),
    ("val/LY_883318/cytoplasm_texture", "frosted"),
    ("val/MO_173558/cytoplasm_colour", "light blue"),
    ("test/EO_501290/cytoplasm_colour", "light blue"),
    ("test/BA_249665/cell_shape", "irregular"),
    ("test/MO_371151/cell_shape", "round"),
]


def test_options_and_majority_of_the_owners_tables(annotations):
    prepared = prepare_wbcatt(annotations)
    options = {s.meta["attribute"]: s.meta["options"] for s in prepared.splits["test"]}
    assert options["cytoplasm vacuole"] == ["yes", "no"]
    assert options["granule type"] == ["coarse", "round", "small"]
    assert options["label"] == ["Basophil", "Eosinophil", "Lymphocyte", "Monocyte", "Neutrophil"]
    majority = prepared.tables["training_majority"]
    right = Counter(
        s.meta["attribute"] for s in prepared.splits["test"] if s.meta["answer"] == majority[s.meta["attribute"]]
    )
    asked = Counter(s.meta["attribute"] for s in prepared.splits["test"])
    accuracy = sum(right[name] / asked[name] for name in asked) / len(asked)
    assert accuracy == pytest.approx(0.651, abs=5e-4), "the paper's accuracies lie around this baseline"


def test_every_image_is_in_the_archive(annotations, medtune_data):
    root = ImageRoot(medtune_data / "wbcatt/wbcatt_128.tar")
    images = list(prepare_wbcatt(annotations, questions="one").images())
    assert len(images) == 10298
    assert {root.size(image, id) for image, id in images} == {(128, 128)}
