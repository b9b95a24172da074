"""Training and validation parts of one file: every row in one part, and no image in both."""

import json
import random
from pathlib import Path

import pytest

from medtune.data.held_out import PartByImage
from medtune.data.source import SampleSource
from medtune.datasets import preference_dataset
from medtune.errors import ConfigError, DataError
from medtune.training.leakage import refuse_same_file

TURN = [{"role": "user", "content": "q"}]


def pairs(folder: Path, images: list[list[str]], name: str = "pairs.jsonl", **options: object) -> SampleSource:
    rows = [
        {"id": f"{number}", "images": given, "messages": TURN, "chosen": "a", "rejected": "b"}
        for number, given in enumerate(images)
    ]
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return preference_dataset(str(folder / name), str(folder), **options)  # type: ignore[arg-type]


def ids(source: SampleSource) -> list[str]:
    return [source[row].id for row in range(len(source))]


def test_the_parts_are_the_whole_and_share_no_image(tmp_path: Path) -> None:
    draw = random.Random(1)
    images = [[f"{draw.randrange(200)}.png"] for _ in range(600)] + [["3.png", "4.png"], ["4.png", "5.png"]]
    train, val = (pairs(tmp_path, images, part=part, validation_share=0.2) for part in ("training", "validation"))
    assert sorted([*ids(train), *ids(val)], key=int) == [f"{number}" for number in range(602)]
    shown = [{name for row in range(len(part)) for name in part[row].images} for part in (train, val)]
    assert not shown[0] & shown[1] and 0.12 < len(shown[1]) / 200 < 0.28
    refuse_same_file(train, val, [])
    with pytest.raises(DataError, match="same_file:train-val"):
        refuse_same_file(train, train, [])


def test_images_that_rows_connect_stay_together(tmp_path: Path) -> None:
    chain = [[f"{letter}.png", f"{following}.png"] for letter, following in zip("acegikm", "cegikmo", strict=True)]
    source = pairs(tmp_path, [*chain, *([f"{letter}.png"] for letter in "moac")])
    for share in (0.05, 0.3, 0.5, 0.7, 0.95):
        sizes = set()
        for part in ("training", "validation"):
            try:
                sizes.add(len(PartByImage(source, part, share)))  # type: ignore[arg-type]
            except DataError as error:
                assert f"the {part} part of 1 images is empty; change validation_share" in str(error)
        assert sizes == {len(source)}


def test_the_order_of_rows_changes_nothing_and_rows_without_images_are_divided_too(tmp_path: Path) -> None:
    images: list[list[str]] = [[f"{number}.png"] for number in range(60)]
    forward, backward = (
        pairs(tmp_path, rows, f"{name}.jsonl", part="validation", validation_share=0.3)
        for name, rows in (("forward", images), ("backward", images[::-1]))
    )
    assert {one[row].images for one in (forward,) for row in range(len(one))} == {
        backward[row].images for row in range(len(backward))
    }
    bare = pairs(tmp_path, [[] for _ in range(80)], "bare.jsonl", part="validation", validation_share=0.3)
    assert 8 < len(bare) < 45


def test_a_row_that_cannot_be_read_is_named_by_both_parts(tmp_path: Path) -> None:
    pairs(tmp_path, [[f"{number}.png"] for number in range(20)])
    with (tmp_path / "pairs.jsonl").open("a") as file:
        file.write('{"id": "broken"}\n')
    for part in ("training", "validation"):
        source = preference_dataset(str(tmp_path / "pairs.jsonl"), str(tmp_path), part=part)
        with pytest.raises(DataError, match="the field 'messages' is missing"):
            source[len(source) - 1]


def test_what_is_no_part_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="part: 'test' is unknown"):
        pairs(tmp_path, [["a.png"]], part="test")
    for share in (0.0, 1.0, -0.1):
        with pytest.raises(ConfigError, match="between 0 and 1"):
            pairs(tmp_path, [["a.png"]], part="training", validation_share=share)
