"""Tables of labelled images as they are found: spellings, unclear cells, one column a class, several tasks."""

import json
from collections import Counter

import pytest

from medtune.datasets.labelled import prepare_labelled_csv
from medtune.errors import ConfigError, DataError
from medtune.recipes.prepare import main
from tests.datasets.owners import write_picture

ALL_TEST = {"val_share": 0.0, "test_share": 1.0}


def prepare(tmp_path, text, **options):
    path = tmp_path / "t.csv"
    path.write_bytes(text.encode(options.get("encoding", "utf-8")))
    return prepare_labelled_csv(str(path), "ours", "CT", **options)


def answers(prepared, split="test"):
    return [sample.messages[1].content for sample in prepared.splits[split]]


CASES = "path,label\n1.png,Yes\n2.png,yes\n3.png,No\n4.png,no\n5.png,Yes\n"


def test_labels_that_differ_by_case_are_named(tmp_path):
    prepared = prepare(tmp_path, CASES, **ALL_TEST)
    assert len(prepared.summary["classes"]) == 4
    assert "'Yes' and 'yes'; 'No' and 'no' (fold_case: true joins)" in prepared.notes[0]
    assert prepare(tmp_path, "path,label\n1.png,a\n2.png,b\n", **ALL_TEST).notes == []


def test_labels_that_differ_by_case_are_one_class_if_folded(tmp_path):
    prepared = prepare(tmp_path, CASES, fold_case=True, **ALL_TEST)
    assert answers(prepared) == ["Yes", "Yes", "No", "No", "Yes"] and prepared.notes == []
    given = prepare(tmp_path, CASES, fold_case=True, classes={"YES": "present", "NO": "absent"}, **ALL_TEST)
    assert Counter(answers(given)) == {"present": 3, "absent": 2}


def test_a_class_in_another_case_than_the_label_is_hinted_at(tmp_path):
    with pytest.raises(
        DataError, match=r"line [35]: a label is none of the classes; it differs from .(Yes|No). by case \(fold"
    ):
        prepare(tmp_path, CASES, classes=["Yes", "No"])


@pytest.mark.parametrize("cell", ["No Finding", "NO FINDING", "no  finding", "", "nan"])
def test_no_finding_is_no_class_whatever_its_case(tmp_path, cell):
    table = f"path,label\n1.png,{cell}\n2.png,Mass|Nodule\n"
    prepared = prepare(tmp_path, table, task="multi_label", **ALL_TEST)
    assert prepared.summary["classes"] == ["Mass", "Nodule"] and answers(prepared) == ["no finding", "Mass; Nodule"]


def test_other_names_of_no_finding(tmp_path):
    table = "path,label\n1.png,Normal\n2.png,Mass|Nodule\n3.png,normal|Mass\n"
    prepared = prepare(tmp_path, table, task="multi_label", no_finding=["normal"], **ALL_TEST)
    assert answers(prepared) == ["no finding", "Mass; Nodule", "Mass"]
    assert prepared.summary["no_finding_beside_a_finding"] == 1
    assert prepared.notes == ['ours: 1 rows say "no finding" beside a finding; the finding counts']


CHEXPERT = "Path,No Finding,Edema,Mass\n1.jpg,1.0,,\n2.jpg,,1.0,0.0\n3.jpg,,-1.0,1.0\n4.jpg,0.0,,0\n"


@pytest.mark.parametrize(
    ("uncertain", "expected"),
    [
        ("absent", ["no finding", "Edema", "Mass", "no finding"]),
        ("present", ["no finding", "Edema", "Edema; Mass", "no finding"]),
        ("leave_out", ["no finding", "Edema", "no finding"]),
    ],
)
def test_one_column_a_finding_with_the_four_meanings_of_chexpert(tmp_path, uncertain, expected):
    options = {"class_columns": ["No Finding", "Edema", "Mass"], "image_column": "Path", "task": "multi_label"}
    prepared = prepare(tmp_path, CHEXPERT, uncertain=uncertain, **options, **ALL_TEST)
    assert answers(prepared) == expected and prepared.summary["classes"] == ["Edema", "Mass"]
    assert prepared.summary["rows_left_out"] == (uncertain == "leave_out")
    assert bool(prepared.notes) == (uncertain == "leave_out")


def test_an_uncertain_finding_needs_a_meaning(tmp_path):
    with pytest.raises(DataError, match=r"line 4: the cell of column 'Edema' is -1 \(uncertain\); say what that means"):
        prepare(tmp_path, CHEXPERT, class_columns=["Edema", "Mass"], image_column="Path", task="multi_label")


def test_a_blank_finding_may_leave_the_row_out(tmp_path):
    table = "path,a,b\n1.png,1,0\n2.png,,1\n"
    options = {"class_columns": ["a", "b"], "task": "multi_label", **ALL_TEST}
    assert answers(prepare(tmp_path, table, blank="leave_out", **options)) == ["a"]


def test_one_hot_columns(tmp_path):
    table = 'image,MEL,NV,BCC\nISIC_1,"1,0","0,0","0,0"\nISIC_2,0.0,true,no\n'
    options = {"class_columns": ["MEL", "NV", "BCC"], "image_column": "image", "image_suffix": ".jpg", **ALL_TEST}
    prepared = prepare(tmp_path, table, classes={"MEL": "melanoma", "NV": "nevus", "BCC": "carcinoma"}, **options)
    assert answers(prepared) == ["melanoma", "nevus"]
    assert [sample.images for sample in prepared.splits["test"]] == [("ISIC_1.jpg",), ("ISIC_2.jpg",)]
    assert prepare(tmp_path, table, **options).summary["classes"] == ["MEL", "NV", "BCC"]
    for row in ("1,1,0", "0,0,0"):
        with pytest.raises(
            DataError, match="line 2: [02] of the class_columns are 1; a multi_class image has exactly one"
        ):
            prepare(tmp_path, f"image,MEL,NV,BCC\nISIC_1,{row}\n", **options)


def test_two_label_columns_are_two_sets_with_one_split(tmp_path):
    rows = [f"{n}.png,{'left' if n % 2 else 'right'},{'abc'[n % 3]}" for n in range(40)]
    table = "\n".join(["path,side,diagnosis", *rows]) + "\n"
    options = {"label_column": ["side", "diagnosis"], "noun": {"side": "sides"}}
    prepared = prepare(tmp_path, table, classes={"side": ["right", "left"]}, **options)
    sets = {split: Counter(sample.meta["set"] for sample in rows) for split, rows in prepared.splits.items()}
    assert sets["train"] == {"ours_side": 28, "ours_diagnosis": 28} and set(sets) == {"train", "val", "test"}
    homes = {}
    for split, samples in prepared.splits.items():
        for sample in samples:
            assert homes.setdefault(sample.images, split) == split
    assert prepared.splits["train"][0].meta["classes"] == ["right", "left"]
    assert "The possible sides are: right; left." in prepared.splits["train"][0].messages[0].content
    assert set(prepared.tables["training_majority"]) == {"ours_side", "ours_diagnosis"}
    assert len({sample.id for sample in prepared.splits["train"]}) == 56


def test_label_columns_with_tasks_of_their_own(tmp_path):
    table = "path,side,findings\n1.png,left,\n2.png,right,a|b\n3.png,,a\n"
    options = {"label_column": ["side", "findings"], "task": {"findings": "multi_label"}, "blank": "leave_out"}
    prepared = prepare(tmp_path, table, **options, **ALL_TEST)
    assert answers(prepared) == ["left", "right", "a; b", "a"]
    assert prepared.summary["sets"]["ours_side"]["rows_left_out"] == 1


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"label_column": []}, ConfigError, "a list needs at least one column"),
        ({"label_column": ["side", "side"]}, ConfigError, "each column once"),
        ({"label_column": ["side", "label"], "task": {"sid": "multi_label"}}, ConfigError, "did you mean 'side'"),
        ({"label_column": ["side", "label"], "classes": ["a"]}, ConfigError, "classes: with several label columns"),
        ({"label_column": ["side", "label"], "class_columns": ["side"]}, ConfigError, "class_columns: give either"),
        ({"uncertain": "absent"}, ConfigError, "uncertain: only class_columns"),
        ({"blank": "absent"}, ConfigError, "blank: an empty cell of 'label' names no label"),
        ({"image_suffix": "png"}, ConfigError, "image_suffix: 'png' must begin with a dot"),
        ({"image_column": "label"}, DataError, "line 2: the cell of column 'label' is not the path of an image"),
        ({"split_column": "label"}, DataError, "line 2: the cell of column 'label' must be train, val or test"),
        ({"class_columns": ["label"], "task": "multi_label"}, DataError, "'label' must be 1, 0, -1"),
        ({"class_weights": "rare"}, ConfigError, "class_weights: 'rare' is unknown"),
        ({"class_weights": {"x": 1.0}}, ConfigError, "class_weights: ours has no class 'x'"),
        ({"class_weights": {"Miller": 0.0}}, ConfigError, "every weight must be a number above 0"),
        ({"class_weights": "balanced", "balance_train": "oversample"}, ConfigError, "use one of them"),
    ],
)
def test_options_that_do_not_fit_are_refused_without_a_cell(tmp_path, options, error, says):
    table = "path,label,side\n1.png,Miller,a\n2.png,Smith,b\n"
    with pytest.raises(error, match=says) as caught:
        prepare(tmp_path, table, val_share=0.0, test_share=0.0, **options)
    if "class_weights" not in options:  # classes may be named, they stand in every instruction
        assert "Smith" not in str(caught.value) and "Miller" not in str(caught.value)


def test_a_column_with_a_label_for_each_row_is_refused_without_its_cells(tmp_path):
    rows = [f"{n}.png,Miller {n}" for n in range(60)]
    with pytest.raises(DataError, match="60 different labels in 60 rows; is this the column of the labels") as caught:
        prepare(tmp_path, "\n".join(["path,label", *rows]))
    assert "Miller" not in str(caught.value)


def test_a_table_of_a_german_excel(tmp_path):
    table = "Datei;Befund\r\n1;Knötchen\r\n2;Zyste\r\n"
    options = {"image_column": "Datei", "label_column": "Befund", "image_suffix": ".png", **ALL_TEST}
    prepared = prepare(tmp_path, table, delimiter=";", encoding="cp1252", **options)
    assert answers(prepared) == ["Knötchen", "Zyste"]


def test_class_weights_are_written_with_the_training_rows(tmp_path):
    table = "\n".join(["path,label", *(f"{n}.png,{'rare' if n < 2 else 'common'}" for n in range(8))])
    options = {"val_share": 0.0, "test_share": 0.0}
    balanced = prepare(tmp_path, table, class_weights="balanced", **options).splits["train"]
    assert [sample.weight for sample in balanced] == pytest.approx([2.0] * 2 + [8 / 12] * 6)
    given = prepare(tmp_path, table, class_weights={"rare": 3.0}, **options).splits["train"]
    assert [sample.weight for sample in given] == [3.0] * 2 + [1.0] * 6
    assert all(s.weight == 1.0 for s in prepare(tmp_path, table, class_weights="balanced", **ALL_TEST).splits["test"])


def test_the_recipe_reads_two_label_columns_and_says_what_is_uncommon(tmp_path, capsys):
    for number in range(8):
        write_picture(tmp_path / f"images/{number}.png", number)
    (tmp_path / "t.csv").write_text(
        "\n".join(["path,side,diagnosis", *(f"{n}.png,{'LR'[n % 2]},{'aA'[n // 4]}" for n in range(8))])
    )
    call = ["--config", "prepare/labelled_csv", f"data.table={tmp_path / 't.csv'}", f"image_root={tmp_path / 'images'}"]
    call += ["data.label_column=[side,diagnosis]", "data.test_share=0.03", f"output_dir={tmp_path / 'out'}"]
    assert main(call) == 0
    said = capsys.readouterr().out
    assert "note: labels that differ by case" in said and "note: the split test is empty" in said
    rows = [json.loads(line) for line in (tmp_path / "out/train.jsonl").read_text().splitlines()]
    assert {row["meta"]["set"] for row in rows} == {"labelled_side", "labelled_diagnosis"}
