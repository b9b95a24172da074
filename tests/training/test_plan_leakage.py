"""``medtune plan`` compares the training and the validation data."""

import csv
import json
from pathlib import Path

import pytest
from PIL import Image

from medtune.config import Component
from medtune.errors import DataError
from medtune.training.config import TrainConfig
from medtune.training.leakage import compare_splits
from medtune.training.plan import plan


def write(folder: Path, name: str, rows: list[tuple[str, str]]) -> Component:
    """Samples of (image, report), as a dataset's config."""
    lines = [{"id": f"{name}{n}", "images": [image], "messages": [{"role": "assistant", "content": text}]}
             for n, (image, text) in enumerate(rows)]  # fmt: skip
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Component({"_component_": "medtune.datasets.jsonl_dataset", "source": str(folder / f"{name}.jsonl"),
                      "image_root": str(folder)})  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, colour in (("a", "red"), ("b", "green"), ("c", "blue"), ("d", "red")):
        (tmp_path / "data").mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), colour).save(tmp_path / "data" / f"{name}.png")
    return tmp_path / "data"


class Config:
    """The keys of a training config that the comparison reads."""

    preflight_cache = "auto"

    def __init__(self, train: Component, val: Component | None, allowed: tuple[str, ...] = ()) -> None:
        self.dataset, self.dataset_val, self.allow_leakage = train, val, list(allowed)


def compare(*arguments: object, **options: object) -> str:
    return compare_splits(Config(*arguments), **options)  # type: ignore[arg-type]


def test_identical_pixels_of_training_and_validation_are_refused_and_listed(folder: Path, tmp_path: Path) -> None:
    train, val = write(folder, "train", [("a.png", "x"), ("b.png", "y")]), write(folder, "val", [("d.png", "x")])
    with pytest.raises(DataError, match="images of val with the same pixels as an image of train: 1"):
        compare(train, val, listed=tmp_path / "leaks.csv")
    rows = list(csv.DictReader((tmp_path / "leaks.csv").open()))
    assert [(row["first_id"], row["second_id"]) for row in rows] == [("train0", "val0")]
    assert "allowed, found" in compare(train, val, ("identical_images",))


def test_splits_with_nothing_in_common_pass(folder: Path) -> None:
    text = compare(write(folder, "train", [("a.png", "x")]), write(folder, "val", [("c.png", "x")]))
    assert text == "compared by the pixels of 2 images; nothing in common"
    assert compare(write(folder, "train", [("a.png", "x")]), None).startswith("there is no validation set")


def test_one_file_for_training_and_validation_is_refused_whatever_its_images(folder: Path) -> None:
    same = write(folder, "train", [("a.png", "x")])
    with pytest.raises(DataError, match="files that are the data of train and of val: 1"):
        compare(same, same, ("identical_images",))
    copy = write(folder, "copy", [("a.png", "x")])
    (folder / "copy.jsonl").write_bytes((folder / "train.jsonl").read_bytes())
    with pytest.raises(DataError, match="same_file:train-val"):
        compare(same, copy, ("identical_images",))


def test_crops_and_mixtures_are_compared_by_their_whole_images(folder: Path) -> None:
    train = write(folder, "train", [("a.png", "x")])
    mixed = Component({"_component_": "medtune.datasets.mixture_dataset", "parts": [{**train, "center_crop": 0.5}]})
    with pytest.raises(DataError, match="identical_images:train-val"):
        compare(mixed, write(folder, "val", [("d.png", "x")]))


def test_more_images_than_are_read_unasked_are_compared_by_name(folder: Path, tmp_path: Path) -> None:
    train, val = write(folder, "train", [("a.png", "x")]), write(folder, "val", [("d.png", "x")])
    text = compare(train, val, most=1)
    assert "by the names of 2 images; --leakage FILE compares their pixels, which reads 2 images once" in text
    with pytest.raises(DataError):
        compare(train, val, listed=tmp_path / "leaks.csv", most=1)
    with pytest.raises(DataError):
        compare(train, val, most=0)  # remembered, so nothing is read


def test_several_answers_about_one_file_are_no_conflict(folder: Path) -> None:
    several = write(folder, "train", [("a.png", "effusion"), ("a.png", "mass"), ("b.png", "mass")])
    assert "nothing in common" in compare(several, write(folder, "val", [("c.png", "x")]))


def test_a_row_that_cannot_be_read_is_left_to_the_data_check(folder: Path) -> None:
    train, val = write(folder, "train", [("a.png", "x")]), write(folder, "val", [("c.png", "x")])
    with (folder / "val.jsonl").open("a") as file:
        file.write("not json\n")
    assert "nothing in common" in compare(train, val)


def test_the_plan_lists_it_as_a_problem(folder: Path) -> None:
    write(folder, "train", [("a.png", "big cell"), ("b.png", "small cell")])
    write(folder, "val", [("d.png", "big cell")])
    component = "medtune.datasets.jsonl_dataset"
    data = [f"~{key}.{name}" for key in ("dataset", "dataset_val") for name in ("size", "seed", "kind")]
    data.append("~dataset_val.offset")
    for key, name in (("dataset", "train"), ("dataset_val", "val")):
        data += [f"{key}._component_={component}", f"{key}.source={folder / name}.jsonl", f"{key}.image_root={folder}"]
    done = plan("instfree/mini", data)
    assert any("identical_images:train-val" in problem for problem in done.problems)
    allowed = plan("instfree/mini", [*data, "allow_leakage=[identical_images]"])
    assert allowed.problems == [] and "allowed, found" in allowed.text()
    assert TrainConfig.__dataclass_fields__["allow_leakage"].metadata["help"]
