"""FLARE's official layout as samples: every task, split and form of a row, and the rows that are refused."""

import json
import re

import pytest

from medtune.data.sample import Message
from medtune.data.source import SampleSource
from medtune.datasets.flare import TASKS, flare, prepare_flare, task_type
from medtune.errors import ConfigError, DataError
from medtune.recipes.prepare import main
from tests.datasets.flare.files import ROWS, row, write_set


@pytest.mark.parametrize(
    ("written", "task"),
    [
        ("Classification", "classification"),
        ("classification", "classification"),
        ("disease_diagnosis_classification", "classification"),
        ("Disease Diagnosis Classification", "classification"),
        ("multi-label classification", "multi_label_classification"),
        ("Multi-label Classification", "multi_label_classification"),
        ("multi_label_classification", "multi_label_classification"),
        ("Detection", "detection"),
        ("instance detection", "instance_detection"),
        ("Instance_Detection", "instance_detection"),
        ("Counting", "counting"),
        ("cell counting", "counting"),
        ("cell_counting", "counting"),
        (" Regression ", "regression"),
        ("Report Generation", "report_generation"),
        ("report_generation", "report_generation"),
    ],
)
def test_a_task_is_known_by_its_names_of_2025_and_2026(written, task):
    assert task_type(written) == task and task in TASKS


@pytest.mark.parametrize("written", ["", "segmentation", None, 3, ["detection"], "report generator"])
def test_an_unknown_task_is_refused_with_the_known_ones_and_not_quoted(written):
    with pytest.raises(
        DataError, match="f.json, item 2: the TaskType is unknown; write one of classification,"
    ) as said:
        task_type(written, "f.json, item 2")
    assert str(written) not in str(said.value) or not written


def test_a_row_of_each_task_is_a_sample(tmp_path):
    write_set(tmp_path, *(row(task) for task in TASKS))
    source = flare(str(tmp_path), "train")
    assert isinstance(source, SampleSource) and len(source) == len(TASKS)
    samples = [source[index] for index in range(len(source))]
    assert [sample.meta["task"] for sample in samples] == list(TASKS)
    assert [sample.id for sample in samples] == [f"BUSI/train/{number}" for number in range(1, 8)]
    assert {sample.images for sample in samples} == {("training/Ultrasound/BUSI/imagesTr/0.png",)}
    for sample in samples:
        answer = str(ROWS[sample.meta["task"]]["Answer"])
        assert sample.messages[1:] == (Message("assistant", answer),) and sample.meta["answer"] == answer
        assert (sample.meta["dataset"], sample.meta["modality"], sample.meta["split"]) == (
            "BUSI",
            "Ultrasound",
            "train",
        )
    assert source.image_sizes(samples[2]) == [(24, 20)]
    assert source.open_images(samples[0])[0].size == (24, 20)


@pytest.mark.parametrize(
    ("task", "answer", "text"),
    [
        ("detection", [[1, 2, 3, 4]], "[[1, 2, 3, 4]]"),
        ("detection", [1, 2, 3, 4.5], "[1, 2, 3, 4.5]"),
        ("detection", "[1, 2, 3, 4]", "[1, 2, 3, 4]"),
        ("detection", "[(1, 2, 3, 4)]", "[(1, 2, 3, 4)]"),
        ("detection", [], "[]"),
        ("detection", "[[5, 5, 5, 5]]", "[[5, 5, 5, 5]]"),
        ("instance_detection", {"1": [1, 2, 3, 4], "2": []}, '{"1": [1, 2, 3, 4], "2": []}'),
        ("counting", 1664, "1664"),
        ("counting", "3", "3"),
        ("regression", 33.5, "33.5"),
        ("regression", "-1e2", "-1e2"),
        ("multi_label_classification", ["a", "b, c"], "a; b, c"),
        ("classification", " K ", "K"),
        ("classification", "Malignant", "Malignant"),
    ],
)
def test_answers_are_kept_as_they_are_written_and_values_become_text(tmp_path, task, answer, text):
    write_set(tmp_path, row(task, Answer=answer))
    source = flare(str(tmp_path), "train")
    assert source[0].meta["answer"] == text
    source.image_sizes(source[0])


def test_a_dictionary_of_boxes_under_detection_is_instance_detection_as_in_2026(tmp_path):
    rows = [row("detection", Answer={"1": [[1, 2, 3, 4]]}), row("detection", Answer='{"1": [1, 2, 3, 4]}')]
    write_set(tmp_path, *rows, row("detection"))
    source = flare(str(tmp_path), "train", tasks=["instance detection"])
    assert [source[index].id for index in range(len(source))] == ["BUSI/train/1", "BUSI/train/2"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"Answer": "[[1, 2, 0, 4]]"}, "box 1 of the Answer has x_max < x_min; write"),
        ({"Answer": "[[1, 2, 3, 4], [1, 9, 3, 4]]"}, "box 2 of the Answer has y_max < y_min"),
        ({"Answer": "[9, 2, 3, 4]"}, "box 1 of the Answer has x_max < x_min"),
        ({"Answer": '{"7": [[9, 2, 3, 4]]}'}, "box 1 of the Answer has x_max < x_min"),
        ({"Answer": "[[1, 2, 3]]"}, "the Answer of detection must be boxes"),
        ({"Answer": "left of the heart"}, "the Answer of detection must be boxes"),
        ({"Answer": 3}, "the Answer of detection must be boxes"),
        ({"Answer": [[1, 2, 3, float("nan")]]}, "the Answer of detection must be boxes"),
        ({"Answer": [[1, 2, 3, True]]}, "the Answer of detection must be boxes"),
        ({"Answer": None}, "the row has no 'Answer'; a row of the training split needs one"),
        ({"Answer": " "}, "the row has no 'Answer'"),
        ({"TaskType": "Counting", "Answer": "many"}, "the Answer of counting must be a whole number"),
        ({"TaskType": "Counting", "Answer": 3.5}, "the Answer of counting must be a whole number"),
        ({"TaskType": "Counting", "Answer": -1}, "the Answer of counting must be a whole number"),
        ({"TaskType": "Counting", "Answer": "1e999"}, "the Answer of counting must be a whole number"),
        ({"TaskType": "Regression", "Answer": "33,5"}, "the Answer of regression must be a number"),
        ({"TaskType": "Regression", "Answer": float("nan")}, "the Answer of regression must be a number"),
        ({"TaskType": "Classification", "Answer": True}, "the Answer of classification must be a text"),
        ({"TaskType": "Classification", "Answer": ["A"]}, "the Answer of classification must be a text"),
        ({"TaskType": "instance detection"}, "must be an object from a class to its boxes"),
        ({"TaskType": "Segmentation"}, "the TaskType is unknown; write one of"),
        ({"TaskType": None}, "the TaskType is unknown; write one of"),
        ({"Question": " "}, "the field 'Question' is missing or empty"),
        ({"Question": None}, "the field 'Question' is missing or empty"),
        ({"Question": "<image> and <image>"}, "2 <image> tags for 1 images"),
        ({"Modality": ["CT"]}, "'Modality' must be a text"),
        ({"ImageName": None}, "'ImageName' must be a path"),
        ({"ImageName": []}, "'ImageName' must be a path"),
        ({"ImageName": ["imagesTr/0.png", ""]}, "'ImageName' must be a path"),
        ({"ImageName": "../../secret.png"}, "leaves the image root"),
        ({"ImageName": "/etc/passwd"}, "leaves the image root"),
        ({"ImageName": ["imagesTr/0.png", "C:\\x.png"]}, "leaves the image root"),
    ],
)
def test_a_bad_row_is_refused_by_file_and_item_and_others_are_read(tmp_path, changes, said):
    write_set(tmp_path, row("detection"), row("detection", **changes), row("counting"))
    source = flare(str(tmp_path), "train")
    assert source[0].id == "BUSI/train/1" and source[2].id == "BUSI/train/3"
    with pytest.raises(DataError, match=f"^BUSI_questions_train.json, item 2.*{re.escape(said)}"):
        source[1]


@pytest.mark.parametrize(
    "box", [[0, 0, 25, 20], [0, 0, 24, 20.5], [-1, 0, 5, 5], [0, -0.5, 5, 5], [100, 100, 200, 200]]
)
def test_a_box_outside_of_its_image_is_refused_before_training(tmp_path, box):
    write_set(tmp_path, row("detection"), row("detection", Answer=[[0, 0, 24, 20], box]))
    source = flare(str(tmp_path), "train")
    assert source.image_sizes(source[0]) == [(24, 20)]
    with pytest.raises(DataError, match=r"item 2 .*: box 2 of the Answer lies outside of the image \(24 x 20 pixels\)"):
        source.image_sizes(source[1])
    with pytest.raises(DataError, match=r"item 2 .*: box 2 of the Answer lies outside"):
        list(prepare_flare(str(tmp_path)).splits["train"])


def test_a_missing_image_is_named_with_its_row(tmp_path):
    write_set(tmp_path, row("counting", "imagesTr/9.png"))
    source = flare(str(tmp_path), "train")
    with pytest.raises(
        DataError, match="^BUSI_questions_train.json, item 1 .*imagesTr/9.png is not in .*; correct the"
    ):
        source.image_sizes(source[0])
    with pytest.raises(DataError, match="item 1"):
        source.open_images(source[0])


def test_several_images_stay_together_or_are_samples_of_their_own(tmp_path):
    both = ["imagesTr/0.png", "imagesTr/1.png"]
    write_set(tmp_path, row("report_generation", both), row("counting"), {"bad": 1})
    whole, each = (flare(str(tmp_path), "train", explode_images=form) for form in (False, True))
    assert [len(whole), len(each)] == [3, 4] and len(whole[0].images) == 2
    assert [each[index].id for index in range(3)] == ["BUSI/train/1/1", "BUSI/train/1/2", "BUSI/train/2"]
    assert [each[index].images[0][-5:] for index in range(3)] == ["0.png", "1.png", "0.png"]
    assert each[1].messages == whole[0].messages and each[1].meta == whole[0].meta
    assert [len(each.image_sizes(each[index])) for index in range(3)] == [1, 1, 1]
    assert [image.size for image in each.open_images(each[1])] == [(24, 20)]
    assert each.where(each[1]).startswith("BUSI_questions_train.json, item 1 ")
    assert each.image_files(each[1]) == whole.image_files(whole[0])[1:]
    assert each.fingerprint() != whole.fingerprint()
    with pytest.raises(DataError, match="item 3: the TaskType is unknown"):
        each[3]


def test_tasks_and_data_sets_are_chosen_and_ids_stay(tmp_path):
    write_set(tmp_path, *(row(task) for task in TASKS))
    write_set(tmp_path, row("counting"), dataset="neurips22cell", folder="training/Microscopy")
    counted = flare(str(tmp_path), "training", tasks=["Cell counting", "Detection"])
    assert [counted[index].id for index in range(len(counted))] == [
        "neurips22cell/train/1", "BUSI/train/3", "BUSI/train/5",
    ]  # fmt: skip
    assert len(flare(str(tmp_path), "train", datasets=["neurips22cell"])) == 1
    only = flare(str(tmp_path), "train", tasks=["regression"])
    assert len(only) == 1 and only.fingerprint() != counted.fingerprint()


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"tasks": ["segmentation"]}, ConfigError, "tasks: the TaskType is unknown; write one of"),
        ({"tasks": []}, ConfigError, "tasks: this must be a list of names"),
        ({"datasets": ["BUS"]}, ConfigError, "datasets: .* holds no set 'BUS'; it holds BUSI"),
        ({"split": "dev"}, ConfigError, "split: 'dev' is unknown; use one of train, validation_public"),
        ({"split": "test"}, DataError, "no questions of the split test in these data sets; its splits are train"),
        ({"tasks": ["regression"]}, DataError, "the split train holds no question of the tasks regression"),
        ({"grey_bits": 3}, ConfigError, "grey_bits"),
        ({"image_root": "absent"}, DataError, "image root absent does not exist"),
    ],
)
def test_a_choice_that_holds_nothing_is_refused(tmp_path, options, kind, said):
    write_set(tmp_path, row("counting"))
    with pytest.raises(kind, match=said):
        flare(**{"root": str(tmp_path), "split": "train", **options})


def test_a_folder_without_question_files_is_refused(tmp_path):
    with pytest.raises(DataError, match="does not exist; give the folder that holds FLARE's splits"):
        flare(str(tmp_path / "absent"), "train")
    with pytest.raises(DataError, match="holds no <dataset>_questions_train.json"):
        flare(str(tmp_path), "train")


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"[]", "holds no row"), (b"{}", "JSON array"), (b'[{"a": 1}', "cut off"), (b"[1, 2]", "holds no row")],
)
def test_a_file_that_is_no_list_of_questions_is_refused(tmp_path, content, said):
    path = write_set(tmp_path, row("counting"))
    path.write_bytes(content)
    for tasks in (None, ["counting"]):
        with pytest.raises(DataError, match=said):
            flare(str(tmp_path), "train", tasks=tasks)


@pytest.mark.parametrize(
    ("folder", "part", "split"),
    [
        ("training/Xray", "train", "train"),
        ("validation-public/Xray", "val", "validation_public"),
        ("validation-hidden/Xray", "val", "validation_hidden"),
        ("validation_hidden/Xray", "val", "validation_hidden"),
        ("testing/Xray", "test", "test"),
        ("Xray", "val", "validation_public"),
        (".", "test", "test"),
    ],
)
def test_the_split_is_that_of_the_folder_or_else_of_the_file(tmp_path, folder, part, split):
    write_set(tmp_path, row("counting"), dataset="dental", folder=folder, part=part)
    source = flare(str(tmp_path), split)
    assert source[0].id == f"dental/{split}/1"
    source.image_sizes(source[0])
    if folder.startswith("validation-hidden"):
        inner = flare(str(tmp_path / "validation-hidden"), split)
        assert inner[0].id == source[0].id and inner[0].images == ("Xray/dental/imagesTr/0.png",)


def test_rows_without_answer_are_asked_and_the_file_with_the_hidden_answers_takes_its_place(tmp_path):
    place = {"dataset": "dental", "folder": "validation-hidden/Xray"}
    write_set(tmp_path, row("counting", Answer=None), row("detection", Answer=""), part="val", **place)
    asked = flare(str(tmp_path), "validation_hidden")
    assert [len(asked[0].messages), "answer" in asked[0].meta] == [1, False]
    asked.image_sizes(asked[1])
    write_set(tmp_path, row("counting"), row("detection"), part="val_withGT", **place)
    known = flare(str(tmp_path), "validation_hidden")
    assert len(known) == 2 and [known[0].id, known[0].meta["answer"]] == [asked[0].id, "7"]


def test_one_set_in_two_places_of_a_split_is_refused(tmp_path):
    for folder in ("training/Xray", "training/Other"):
        write_set(tmp_path, row("counting"), folder=folder)
    with pytest.raises(DataError, match=r"the questions of BUSI \(train\) are also in .*; remove one of them"):
        flare(str(tmp_path), "train")


def test_a_modality_that_is_absent_is_the_folder(tmp_path):
    write_set(tmp_path, row("counting", Modality=None))
    assert flare(str(tmp_path), "train")[0].meta["modality"] == "Ultrasound"


def test_all_splits_are_prepared_by_the_recipe(tmp_path, capsys):
    root = tmp_path / "flare"
    write_set(root, *(row(task) for task in TASKS))
    write_set(root, row("counting", "imagesTr/2.png", Answer=None), folder="testing/Ultrasound", part="test", images=3)
    told = [f"data.root={root}", f"image_root={root}", f"output_dir={tmp_path}/out"]
    shared = {"allow_leakage": "allow_leakage=[identical_images]"}
    assert not main(["--config", "prepare/flare", *told, shared["allow_leakage"]])
    lines = [json.loads(line) for line in (tmp_path / "out/train.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [f"BUSI/train/{number}" for number in range(1, 8)]
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["counts"] == {"train": 7, "test": 1}
    assert manifest["questions"]["train"]["BUSI, detection"] == 1
    assert set(manifest["inputs"]) == {"BUSI_questions_train.json", "BUSI_questions_test.json"}


def test_images_that_are_gone_are_counted_and_listed_by_the_recipe(tmp_path, capsys):
    write_set(tmp_path / "flare", row("counting"), row("counting", "imagesTr/9.png"))
    told = [f"data.root={tmp_path}/flare", f"image_root={tmp_path}/flare", f"output_dir={tmp_path}/out"]
    assert main(["--config", "prepare/flare", *told]) == 2
    assert not main(["--config", "prepare/flare", *told, "on_error=skip"])
    assert "imagesTr/9.png" in (tmp_path / "out/unusable_images.csv").read_text()
    assert json.loads((tmp_path / "out/manifest.json").read_text())["skipped"] == {"train": ["BUSI/train/2"]}


def test_the_real_questions(medtune_data):
    source = flare(str(medtune_data / "flare_task5"), "train")
    assert len(source) == 540
    tasks = [source[index].meta["task"] for index in range(len(source))]
    assert {name: tasks.count(name) for name in set(tasks)} == {
        "classification": 300, "detection": 120, "counting": 60, "regression": 60,
    }  # fmt: skip


def test_the_real_blood_cells_with_their_boxes_in_their_images(medtune_data):
    folder = str(medtune_data / "bccd")
    source = flare(folder, "train", image_folders={"imagesTr": "JPEGImages"})
    assert len(source) == 120
    assert {size for index in range(120) for size in source.image_sizes(source[index])} == {(640, 480)}
    assert prepare_flare(folder, image_folders={"imagesTr": "JPEGImages"}).counts() == {"train": 120}
