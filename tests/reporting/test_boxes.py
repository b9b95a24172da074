"""Boxes on sample images: the pairing, the picture, the words for readers who do not see it, and bad boxes."""

import base64
import io
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from PIL import Image

from medtune.errors import DataError
from medtune.evaluation.display import Display
from medtune.reporting import boxes
from medtune.reporting.boxes import overlay, overlay_sections, paired_boxes, read_classes
from medtune.reporting.runs import Run

A, B = (0.0, 0.0, 10.0, 10.0), (20.0, 20.0, 30.0, 30.0)
SVG = "{http://www.w3.org/2000/svg}"


def test_boxes_are_paired_within_their_class_by_the_largest_sum() -> None:
    shifted = (0.0, 5.0, 10.0, 15.0)  # shares 50 of 150 pixels with A
    pairs = paired_boxes({"": [A, B]}, {"": [B, shifted, (50.0, 50.0, 60.0, 60.0)]})
    assert [round(iou, 4) for _, _, iou in pairs.read] == [1.0, round(50 / 150, 4), 0.0]
    assert pairs.words == "right boxes: 2, read: 3, IoU 1.00, 0.33, 0.00"
    other = paired_boxes({"1": [A]}, {"2": [A], "1": [A]})
    assert [(name, iou) for name, _, iou in other.read] == [("2", 0.0), ("1", 1.0)]
    # Two boxes on one lesion: one of them has the partner.
    assert sorted(iou for _, _, iou in paired_boxes({"": [A]}, {"": [A, A]}).read) == [0.0, 1.0]


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        ("[[0, 0, 10, 10]]", {"": [A]}),
        ('{"1": [[0, 0, 10, 10]], "2": [[20, 20, 30, 30]]}', {"1": [A], "2": [B]}),
        ("[]", {}),
        ("", {}),
        ("no boxes", {}),
        ("[1, 2]", {}),
    ],
)
def test_boxes_are_read_from_the_written_form(text: str, classes: dict) -> None:
    assert read_classes(text) == classes


def test_the_picture_holds_the_small_image_and_scaled_boxes() -> None:
    image = Image.new("RGB", (920, 460), (200, 30, 160))
    tree = ElementTree.fromstring(overlay(image, paired_boxes({"": [(100.0, 100.0, 300.0, 200.0)]}, {})))
    assert tree.get("viewBox") == "0 0 460 230"
    held = tree.find(f"{SVG}image").get("href")
    assert Image.open(io.BytesIO(base64.b64decode(held.partition(",")[2]))).size == (460, 230)
    frames = [(one.get("x"), one.get("y"), one.get("width"), one.get("height")) for one in tree.iter(f"{SVG}rect")]
    assert set(frames) == {("50.0", "50.0", "100.0", "50.0")}
    assert tree.find(f"{SVG}title").text == "right boxes: 1, read: 0"


def test_read_boxes_are_dashed_and_classes_have_colours() -> None:
    image = Image.new("RGB", (50, 50))
    svg = overlay(image, paired_boxes({"a": [A], "b": [B]}, {"a": [A], "<b>": [B]}))
    assert svg.count("stroke-dasharray") == 2 * 2  # a dark edge and a line each
    lines = [one for one in ElementTree.fromstring(svg).iter(f"{SVG}rect") if one.get("stroke-width") == "2"]
    labels = [one.text for one in ElementTree.fromstring(svg).iter(f"{SVG}text")]
    assert len({one.get("stroke") for one in lines}) == 3 and labels == ["a", "b", "a 1.00", "<b> 0.00"]


def test_boxes_outside_of_the_image_or_turned_around_are_drawn_within_bounds() -> None:
    svg = overlay(Image.new("RGB", (50, 50)), paired_boxes({}, {"": [(1e300, -1e300, 0.0, 5.0), (9.0, 9.0, 1.0, 1.0)]}))
    numbers = [float(number) for number in re.findall(r' (?:x|y|width|height)="(-?[\d.]+)"', svg)]
    assert max(map(abs, numbers)) <= 2e4 and min(numbers) >= -1e4
    assert 'width="8.0" height="8.0"' in svg


def run(name: str, predicted: str | None) -> Run:
    row = {
        "task": "p", "attribute": "s/detection", "gold": "[[0, 0, 10, 10]]", "predicted": predicted or "",
        "read": "0" if predicted is None else "1", "swapped": "0", "images": "a/1.png",
    }  # fmt: skip
    other = {**row, "attribute": "s/counting", "gold": "3"}
    return Run(name, Path(name), {"protocols": {"p": {}}}, {"q": row, "r": other})


def test_pictures_stand_side_by_side_and_say_the_same_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boxes, "displays", lambda results: list(results) and {"p": Display("P", boxes=("/detection",))})
    runs = [run("base", None), run("tuned", "[[0, 0, 10, 10]]")]

    def opened(path: str) -> Image.Image:
        assert path == "a/1.png"
        return Image.new("RGB", (64, 64))

    (section,) = overlay_sections(runs, 5, opened)
    assert [picture.alt for picture in section.pictures] == [
        "q, base: right boxes: 1, answer unread",
        "q, tuned: right boxes: 1, read: 1, IoU 1.00",
    ]
    assert section.across == 2 and all(one.uri.startswith("data:image/svg+xml") for one in section.pictures)
    assert overlay_sections(runs, 0, opened) == overlay_sections(runs, 5, None) == []

    def gone(path: str) -> Image.Image:
        raise DataError("the patient's name")

    (section,) = overlay_sections(runs, 5, gone)
    assert [(one.uri, one.caption) for one in section.pictures] == [
        ("", "q: the image could not be opened (DataError)")
    ]
