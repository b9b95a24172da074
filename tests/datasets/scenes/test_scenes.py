"""Scenes of cells: what their answers say is what their pixels show, and nothing of the test is seen in training."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medtune.data.images import ImageRoot
from medtune.data.randomness import sample_rng
from medtune.datasets.scenes import prepare_drawn_scenes, prepare_scenes
from medtune.datasets.scenes.cells import Photographs
from medtune.datasets.scenes.draw import TYPES, draw_scene, paint
from medtune.datasets.scenes.prepare import SceneSplit
from medtune.datasets.scenes.tasks import ANSWERS
from medtune.datasets.scenes.wording import BASE_WORDINGS, WORDINGS
from medtune.datasets.wbcatt import ATTRIBUTES, read_cells
from medtune.errors import ConfigError, DataError

ASSET = Path(__file__).parents[3] / "medtune" / "assets" / "demo_wbcatt"
SMALL = {"train": 12, "val": 4, "test": 8, "center_crop": 1.0}
PICTURES = {kind: (kind,) for kind in TYPES}


def small(**changes: object):
    return prepare_scenes(str(ASSET), str(ASSET / "images.tar"), **{**SMALL, **changes})  # type: ignore[arg-type]


def scene(number: int, side: int = 64):
    return draw_scene(sample_rng(3, 0, number), PICTURES, side)


def rows(prepared, split: str) -> list[dict]:
    return [sample.to_dict() for sample in prepared.splits[split]]


def members(prepared) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(b"".join(prepared.files["images.tar"]()))) as tar:
        return {one.name: tar.extractfile(one).read() for one in tar.getmembers()}  # type: ignore[union-attr]


def test_boxes_lie_inside_and_apart_and_one_cell_is_the_largest() -> None:
    counts = set()
    for number in range(200):
        drawn = scene(number)
        counts.add(len(drawn.cells))
        sizes = sorted(cell.diameter for cell in drawn.cells)
        assert len(sizes) == 1 or sizes[-1] - sizes[-2] >= 2
        assert drawn.largest.diameter == sizes[-1]
        taken = np.zeros((64, 64), dtype=int)
        for x1, y1, x2, y2 in (cell.box for cell in drawn.cells):
            assert 0 <= x1 < x2 <= 64 and 0 <= y1 < y2 <= 64 and x2 - x1 == y2 - y1
            taken[y1:y2, x1:x2] += 1
        assert taken.max() == 1
    assert counts == {1, 2, 3, 4}


@pytest.mark.parametrize("side", [64, 96])
def test_the_pixels_show_the_cells_where_the_boxes_say(side: int) -> None:
    dark = Image.new("RGB", (20, 20), (60, 0, 90))
    for number in range(12):
        drawn = scene(number, side)
        pixels = paint(drawn, [dark] * len(drawn.cells), 1.0, sample_rng(0, 0, number))
        seen = pixels[..., 1].astype(int) < 130
        for cell in drawn.cells:
            x1, y1, x2, y2 = cell.box
            inside = seen[y1:y2, x1:x2]
            ys, xs = np.nonzero(inside)
            assert ys.min() <= 1 and xs.min() <= 1 and ys.max() >= y2 - y1 - 2 and xs.max() >= x2 - x1 - 2
            assert not inside[0, 0] and inside.mean() == pytest.approx(np.pi / 4, abs=0.06)
            seen[y1:y2, x1:x2] = False
        assert not seen.any()


def test_only_the_middle_of_a_photograph_is_pasted() -> None:
    photograph = Image.new("RGB", (100, 100), (0, 255, 0))
    photograph.paste((60, 0, 90), (25, 25, 75, 75))
    drawn = scene(1)
    pixels = paint(drawn, [photograph] * len(drawn.cells), 0.5, sample_rng(0, 0, 1)).astype(int)
    assert (pixels[..., 1] - pixels[..., 0]).max() < 40  # no green
    whole = paint(drawn, [photograph] * len(drawn.cells), 1.0, sample_rng(0, 0, 1)).astype(int)
    assert (whole[..., 1] - whole[..., 0]).max() > 150


def test_answers_of_every_task_in_the_form_of_flare() -> None:
    for number in range(40):
        drawn = scene(number)
        answers = {task: make(drawn) for task, make in ANSWERS.items()}
        boxes = [list(cell.box) for cell in drawn.cells]
        assert json.loads(answers["detection"]) == boxes == sorted(boxes, key=lambda box: (box[1], box[0]))
        by_kind = json.loads(answers["instance_detection"])
        assert sorted(box for group in by_kind.values() for box in group) == sorted(boxes)
        assert all(box in by_kind[cell.kind] for cell, box in zip(drawn.cells, boxes, strict=True))
        assert answers["counting"] == str(len(boxes))
        assert answers["multi_label_classification"].split("; ") == sorted(by_kind)
        assert TYPES["ABCDE".index(answers["classification"])] == drawn.largest.kind
        assert int(answers["regression"]) == max(x2 - x1 for x1, _, x2, _ in boxes)
        assert answers["report_generation"].endswith(f"The largest cell is a {drawn.largest.kind}.")
        assert all(kind in answers["report_generation"] for kind in by_kind)


def test_each_task_has_eight_wordings_and_no_text_belongs_to_two_tasks() -> None:
    assert WORDINGS.keys() == ANSWERS.keys() == BASE_WORDINGS.keys()
    texts = [text for group in (WORDINGS, BASE_WORDINGS) for wordings in group.values() for text in wordings]
    assert all(len(wordings) == 8 for wordings in WORDINGS.values()) and len(set(texts)) == len(texts)


def test_test_questions_are_worded_as_no_training_question() -> None:
    prepared = small(train=60, test=40, tasks_per_scene=7)
    asked = {
        split: {row["messages"][0]["content"] for row in rows(prepared, split)}
        for split in SMALL.keys() & {"train", "val", "test"}
    }
    assert asked["train"] == {text for wordings in WORDINGS.values() for text in wordings[:6]}
    assert asked["val"] <= asked["train"] and not asked["test"] & asked["train"] and len(asked["test"]) == 14


def test_cells_of_a_split_are_those_of_wbcatts_split_without_repeats() -> None:
    root, seen = ImageRoot(ASSET / "images.tar"), set[str]()
    train = Photographs(ASSET / "pbc_attr_v1_train.csv", root, 1.0, seen)
    listed = {cell.image: cell.values["label"].lower() for cell in read_cells(ASSET / "pbc_attr_v1_train.csv")}
    assert {name: kind for kind, names in train.names.items() for name in names} == listed
    with pytest.raises(DataError, match="earlier splits lack"):  # the same table again: every photograph was seen
        Photographs(ASSET / "pbc_attr_v1_train.csv", root, 1.0, seen)
    split = SceneSplit("x", "train", train, WORDINGS, 30, 64, 0)
    used = [cell for number in range(30) for cell in split.scene(number).cells]
    assert all(listed[cell.picture] == cell.kind for cell in used)


def test_the_same_options_give_the_same_bytes_and_another_seed_others() -> None:
    first, again, other = small(), small(), small(seed=1)
    assert rows(first, "train") == rows(again, "train") != rows(other, "train")
    pictures = members(first)
    assert pictures == members(again) and pictures != members(other)
    assert len(pictures) == 24 and {image for row in rows(first, "test") for image in row["images"]} <= pictures.keys()
    with Image.open(io.BytesIO(pictures["imagesTs/scene_00003.png"])) as image:
        assert image.size == (64, 64) and image.mode == "RGB"


def test_questions_are_drawn_evenly_and_say_what_they_are() -> None:
    prepared = small(train=28, tasks_per_scene=2, tasks_per_test_scene=7)
    assert set(prepared.summary["tasks"]["train"].values()) == {8}
    assert prepared.summary["tasks"]["test"] == dict.fromkeys(ANSWERS, 8)
    for row in rows(prepared, "train"):
        assert row["meta"]["answer"] == row["messages"][1]["content"] and row["meta"]["dataset"] == "cell_scenes"
        assert row["id"].endswith(row["meta"]["task"])
    two = small(tasks=["counting", "detection"], tasks_per_scene=1)
    assert two.summary["tasks"]["train"] == {"counting": 6, "detection": 6}


def test_drawn_scenes_need_no_data_and_share_no_question() -> None:
    prepared = prepare_drawn_scenes(train=3, val=1, tasks_per_scene=7)
    texts = {row["messages"][0]["content"] for row in rows(prepared, "train")}
    assert texts <= {text for wordings in BASE_WORDINGS.values() for text in wordings}
    pictures = members(prepared)
    assert len(pictures) == 4 and pictures == members(prepare_drawn_scenes(train=3, val=1, tasks_per_scene=7))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ["count"]}, "count.*counting"),
        ({"tasks": []}, "one or more"),
        ({"tasks": ["counting", "counting"]}, "each once"),
        ({"tasks_per_scene": 0}, "tasks_per_scene is 0"),
        ({"tasks": ["counting"], "tasks_per_scene": 2}, "number of tasks, 1"),
        ({"tasks_per_test_scene": 8}, "tasks_per_scene is 8"),
        ({"side": 20}, "side is 20"),
        ({"center_crop": 0.0}, "center_crop is 0"),
        ({"val": 0}, "val is 0"),
    ],
)
def test_options_that_cannot_be_used_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small(**changes)


def test_a_table_with_an_unknown_type_or_without_one_is_refused(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        (tmp_path / f"pbc_attr_v1_{split}.csv").write_bytes((ASSET / f"pbc_attr_v1_{split}.csv").read_bytes())
    table = tmp_path / "pbc_attr_v1_val.csv"
    content = table.read_text().splitlines()
    assert "label" in ATTRIBUTES
    table.write_text("\n".join([content[0], *(line for line in content[1:] if "Basophil" not in line)]))
    with pytest.raises(DataError, match=r"val\.csv has no photograph of a basophil"):
        prepare_scenes(str(tmp_path), str(ASSET / "images.tar"), **SMALL)  # type: ignore[arg-type]
    table.write_text("\n".join(content).replace("Basophil", "Blast"))
    with pytest.raises(DataError, match="none of the types basophil"):
        prepare_scenes(str(tmp_path), str(ASSET / "images.tar"), **SMALL)  # type: ignore[arg-type]
