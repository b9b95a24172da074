"""Modalities and tasks of a folder of questions, and the command that shows them."""

import json
from pathlib import Path

import pytest

from medtune.cli.main import main
from medtune.errors import DataError
from medtune.reporting.distribution import count_questions, distribution_sections


def write(root: Path, folder: str, part: str, rows: list[dict]) -> None:
    place = root / folder
    place.mkdir(parents=True, exist_ok=True)
    (place / f"{place.name}_questions_{part}.json").write_text(json.dumps(rows), encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    xray = {"TaskType": "Classification", "Modality": "X-ray"}
    write(
        tmp_path,
        "training/Xray/dental",
        "train",
        [xray, xray, {**xray, "Modality": "Xray"}, {**xray, "TaskType": "regression"}],
    )
    write(tmp_path, "training/Ultrasound/BUSI-det", "train", [{"TaskType": "Detection", "Answer": "[[0,0,1,1]]"}])
    rows = [{"TaskType": "detection", "Modality": "Microscopy", "Answer": '{"1": [[0,0,1,1]]}'}]
    write(tmp_path, "validation-public/Microscopy/chromosome", "val", rows)
    return tmp_path


def test_questions_are_counted_by_split_modality_and_task(folder: Path) -> None:
    assert count_questions(folder) == {
        ("train", "X-ray", "classification"): 3,
        ("train", "X-ray", "regression"): 1,
        ("train", "Ultrasound", "detection"): 1,  # by its folder
        ("validation_public", "Microscopy", "instance_detection"): 1,
    }


def test_sections_have_plots_and_the_same_numbers_as_tables(folder: Path) -> None:
    modalities, tasks = distribution_sections(count_questions(folder))
    assert modalities.table.columns == ["train", "validation public"]
    numbers = {row.label: [(cell.value, cell.span) for cell in row.cells] for row in modalities.table.rows}
    assert numbers["X-ray"] == [("4", "80.0%"), ("·", "")] and numbers["Microscopy"][1] == ("1", "100.0%")
    rows = {row.label: [cell.value for cell in row.cells] for row in tasks.table.rows}
    assert tasks.table.columns == ["X-ray", "Microscopy", "Ultrasound"]
    assert rows["classification, train"] == ["3", "·", "·"] and len(rows) == 4 * 2
    assert all("<?xml" in section.picture and section.alt for section in (modalities, tasks))


def test_a_row_of_no_task_is_named(folder: Path) -> None:
    write(folder, "training/Xray/dental", "train", [{"TaskType": "Secret 7"}])
    with pytest.raises(DataError, match=r"dental_questions_train.json, item 1: the TaskType is unknown") as caught:
        count_questions(folder)
    assert "Secret" not in str(caught.value)
    write(folder, "training/Xray/dental", "train", [{"TaskType": "counting", "Modality": 3}])
    with pytest.raises(DataError, match="item 1: 'Modality' must be a text"):
        count_questions(folder)


def test_the_command_writes_the_page_alone(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    page = tmp_path / "out" / "page.html"
    assert main(["report", "--questions", str(folder), "--out", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert "Modalities by split" in text and "Tasks by split" in text and "X-ray" in text
    assert main(["report", "--questions", str(tmp_path / "none"), "--out", str(page)]) != 0
    assert "does not exist" in capsys.readouterr().err
    assert main(["report", "--questions", str(folder), "--data-set", "a=b", "--out", str(page)]) != 0
    assert "leave --data-set out" in capsys.readouterr().err


def test_real_questions_without_images(medtune_data: Path) -> None:
    counts = count_questions(medtune_data / "flare_task5" / "training")
    assert sum(counts.values()) == 540 and {key[0] for key in counts} == {"train"}
    assert counts["train", "Microscopy", "counting"] == 60 and counts["train", "Ultrasound", "detection"] == 120
    cells = count_questions(medtune_data / "bccd")
    assert cells == {("train", "Microscopy", task): 40 for task in ("counting", "detection", "classification")}
