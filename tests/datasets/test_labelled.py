from collections import Counter

import pytest

from medtune.datasets.labelled import prepare_labelled_csv, prepare_labelled_folder
from medtune.errors import ConfigError, DataError
from medtune.recipes.prepare import main
from tests.datasets.owners import write_picture


@pytest.fixture
def folder(tmp_path):
    """Two classes, twenty and ten pictures."""
    for name, count in (("nv", 20), ("mel", 10)):
        for number in range(count):
            write_picture(tmp_path / f"skin/{name}/{number:02}.png", number)
    (tmp_path / "skin/nv/readme.txt").write_text("not an image")
    return tmp_path / "skin"


def labels(prepared, split):
    return Counter(sample.meta["label"] for sample in prepared.splits[split])


def test_a_folder_for_each_class(folder):
    names = {"nv": "melanocytic nevi", "mel": "melanoma"}
    prepared = prepare_labelled_folder(str(folder), "skin", "dermatoscope", classes=names)
    assert {split: labels(prepared, split) for split in prepared.splits} == {
        "train": {"melanocytic nevi": 14, "melanoma": 7},
        "val": {"melanocytic nevi": 2, "melanoma": 1},
        "test": {"melanocytic nevi": 4, "melanoma": 2},
    }
    sample = prepared.splits["test"][0]
    assert sample.meta["classes"] == ["melanocytic nevi", "melanoma"] and sample.id == f"skin/test/{sample.images[0]}"
    assert sample.messages[0].content == (
        "Analyze the given dermatoscope image for diagnosis. The possible diagnoses are: melanocytic nevi; melanoma."
    )
    assert prepared.tables["training_majority"] == {"skin": "melanocytic nevi"}
    assert prepared.summary["files_that_are_no_images"] == 1
    again = prepare_labelled_folder(str(folder), "skin", "dermatoscope", classes=names)
    other = prepare_labelled_folder(str(folder), "skin", "dermatoscope", classes=names, seed=1)
    assert again.splits == prepared.splits != other.splits
    images = [sample.images for split in prepared.splits.values() for sample in split]
    assert len(images) == len(set(images)) == 30


def test_split_folders_and_an_external_test(tmp_path):
    for number, split in enumerate(("Train", "test")):
        for name in ("a", "b"):
            write_picture(tmp_path / f"parted/{split}/{name}/{number}.png", number)
    prepared = prepare_labelled_folder(str(tmp_path / "parted"), "x", "test")
    assert {split: len(group) for split, group in prepared.splits.items()} == {"train": 2, "test": 2}
    assert prepared.splits["test"][0].images == ("test/a/1.png",)
    external = prepare_labelled_folder(str(tmp_path / "parted/test"), "x", "test", val_share=0.0, test_share=1.0)
    assert list(external.splits) == ["test"] and external.tables == {"training_majority": {}}


def write_csv(path, rows, header="path,label,split,patient"):
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return str(path)


def test_a_table_with_splits_and_several_labels(tmp_path):
    table = write_csv(tmp_path / "t.csv", ["1.png,effusion|mass,train,a", "2.png,,valid,b", "3.png,no finding,test,c"])
    prepared = prepare_labelled_csv(
        table, "ours", "chest X-ray", task="multi_label", split_column="split", group_column="patient"
    )
    texts = {split: [sample.messages[1].content for sample in group] for split, group in prepared.splits.items()}
    assert texts == {"train": ["effusion; mass"], "val": ["no finding"], "test": ["no finding"]}
    assert prepared.splits["train"][0].meta["classes"] == ["effusion", "mass"]


def test_a_patient_stays_in_one_split(tmp_path):
    rows = [f"{number}.png,{'ab'[number // 4 % 2]},,p{number // 4}" for number in range(80)]
    prepared = prepare_labelled_csv(write_csv(tmp_path / "t.csv", rows), "ours", "CT", group_column="patient")
    homes = {}
    for split, group in prepared.splits.items():
        for sample in group:
            homes.setdefault(int(sample.images[0][:-4]) // 4, set()).add(split)
    assert len(homes) == 20 and all(len(splits) == 1 for splits in homes.values())
    assert {split: len(group) for split, group in prepared.splits.items()} == {"train": 56, "val": 8, "test": 16}


@pytest.mark.parametrize(
    ("rows", "options", "error", "says"),
    [
        (["1.png,a,train,", "2.png,,train,"], {}, DataError, "line 3: the cell of column 'label' is empty"),
        (["1.png,a,train,", ",b,train,"], {}, DataError, "line 3: the cell of column 'path' is empty"),
        (["1.png,a,,", "1.png,b,,"], {}, DataError, "line 3: its image was listed before, in t.csv, line 2"),
        (["1.png,a,exam,", "2.png,b,train,"], {"split_column": "split"}, DataError, "line 2: .* must be train, val"),
        (["1.png,a,train,p", "2.png,b,test,p"], {"split_column": "split", "group_column": "patient"}, DataError,
         "line 3: its group is in test, but in train by t.csv, line 2"),
        (["1.png,a,,", "2.png,bb,,"], {"classes": ["a", "b"]}, DataError, "line 3: a label is none .* mean 'b'"),
        (["1.png,a,,", "2.png,bb,,"], {"classes": {"a": "A", "b": "B"}}, DataError, "line 3: a label is none of"),
        (["1.png,a,,", "2.png,a,,"], {}, DataError, "at least two classes"),
        (["1.png,a;b,,", "2.png,c,,"], {"task": "multi_label"}, DataError, "'a;b' cannot be part of a list"),
        ([], {}, DataError, "holds no row"),
        (["1.png,a,,", "2.png,b,,"], {"task": "ordinal"}, ConfigError, "needs its classes in rising order"),
        (["1.png,a,,", "2.png,b,,"], {"task": "regression"}, ConfigError, "'regression' is unknown"),
        (["1.png,a,,", "2.png,b,,"], {"test_share": 0.95}, ConfigError, "must not be below 0 or above 1 in sum"),
        (["1.png,a,,", "2.png,b,,"], {"image_column": "file"}, DataError, "no column 'file'"),
    ],
)  # fmt: skip
def test_a_table_that_cannot_be_used(tmp_path, rows, options, error, says):
    with pytest.raises(error, match=says):
        prepare_labelled_csv(write_csv(tmp_path / "t.csv", rows), "ours", "CT", **options)


def test_folders_that_cannot_be_used(tmp_path, folder):
    with pytest.raises(DataError, match="nowhere does not exist"):
        prepare_labelled_folder(str(tmp_path / "nowhere"), "x", "test")
    with pytest.raises(DataError, match="a label is none of the classes; did you mean 'mell'"):
        prepare_labelled_folder(str(folder), "x", "test", classes=["nv", "mell"])
    with pytest.raises(ConfigError, match="an image in one folder has one label"):
        prepare_labelled_folder(str(folder), "x", "test", task="multi_label")
    (folder / "df").mkdir()
    with pytest.raises(DataError, match="class folder .*df holds no image"):
        prepare_labelled_folder(str(folder), "x", "test")
    (tmp_path / "bare").mkdir()
    with pytest.raises(DataError, match="bare holds no folder with images"):
        prepare_labelled_folder(str(tmp_path / "bare"), "x", "test")


def test_the_recipe_names_an_image_that_is_empty(folder, tmp_path, capsys):
    (folder / "nv/03.png").write_bytes(b"")
    call = ["--config", "prepare/labelled_folder", f"data.images={folder}", f"image_root={folder}"]
    call += ["data.set=skin", "data.modality=dermatoscope", f"output_dir={tmp_path / 'out'}"]
    assert main(call) == 2
    assert "nv/03.png is empty" in (said := capsys.readouterr().err) and "/nv/03.png')" in said
    assert main([*call, "on_error=skip"]) == 0 and "1 left out" in capsys.readouterr().out


def test_a_table_through_the_recipe(folder, tmp_path):
    rows = [f"nv/{number:02}.png,nv,," for number in range(20)] + [f"mel/{number:02}.png,mel,," for number in range(10)]
    call = ["--config", "prepare/labelled_csv", f"data.table={write_csv(tmp_path / 't.csv', rows)}"]
    call += [f"image_root={folder}", "data.set=skin", f"output_dir={tmp_path / 'out'}", "data.limit_questions=2"]
    assert main(call) == 0
    assert len((tmp_path / "out/test.jsonl").read_text().splitlines()) == 2
