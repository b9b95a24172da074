"""Rows with one question each, joined to conversations about an image."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medtune.datasets import conversation_dataset
from medtune.datasets.conversations import phrase
from medtune.errors import ConfigError, DataError


def rows_at(folder: Path, rows: list[dict]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def row(name: str, image: str, attribute: str, value: str) -> dict:
    turns = [{"role": "user", "content": f"What is the {attribute}?"}, {"role": "assistant", "content": value}]
    return {"id": name, "images": [image], "messages": turns, "meta": {"attribute": attribute, "answer": value}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png"):
        Image.fromarray(np.full((8, 6, 3), ord(name[0]), dtype=np.uint8)).save(tmp_path / name)
    return rows_at(
        tmp_path,
        [
            row("1", "a.png", "cell size", "big"),
            row("2", "b.png", "cell size", "small"),
            row("3", "a.png", "granularity", "yes"),
            row("4", "a.png", "cytoplasm vacuole", "no"),
        ],
    )


def test_rows_of_one_image_become_one_conversation_in_their_order(path: Path) -> None:
    found = conversation_dataset(str(path), str(path.parent))
    first, second = (found[index] for index in range(len(found)))
    assert (first.id, first.images, second.id) == ("1", ("a.png",), "2")
    texts = [message.content for message in first.messages]
    assert texts[1::2] == ["big", "yes", "no"] and texts[2] == "What is the granularity?"
    assert [message.role for message in first.messages] == ["user", "assistant"] * 3 and not first.meta
    assert np.asarray(found.open_images(first)[0]).max() == ord("a")
    assert found.image_sizes(second) == [(6, 8)] and "rows.jsonl" in found.where(first)


def test_no_conversation_has_more_turns_than_asked_for(path: Path) -> None:
    found = conversation_dataset(str(path), str(path.parent), turns=2)
    assert [(found[index].id, len(found[index].messages) // 2) for index in range(len(found))] == [
        ("1", 2), ("4", 1), ("2", 1),
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="turns is 0; it must be at least 1"):
        conversation_dataset(str(path), turns=0)


def test_a_drawn_order_lets_every_question_be_a_later_one(tmp_path: Path) -> None:
    names = ["cell size", "cell shape", "granularity"]
    rows = [row(f"{image}/{name}", f"{image}.png", name, "x") for image in range(40) for name in names]
    path = rows_at(tmp_path, rows)

    def asked(**options: Any) -> list[tuple[str, ...]]:
        found = conversation_dataset(str(path), str(tmp_path), **options)
        texts = [[turn.content for turn in found[index].messages[::2]] for index in range(len(found))]
        return [tuple(text.removeprefix("What is the ").removesuffix("?") for text in one) for one in texts]

    assert set(asked()) == {tuple(names)}
    drawn = asked(shuffle=3)
    assert all(sorted(one) == sorted(names) for one in drawn) and len(drawn) == 40
    assert all({one[place] for one in drawn} == set(names) for place in range(3))
    assert asked(shuffle=3) == drawn != asked(shuffle=4)
    rows_at(tmp_path, [row("first", "new.png", "label", "x"), *rows])
    assert asked(shuffle=3)[1:] == drawn  # an image's order does not depend on the other images


def test_answers_as_phrases_of_a_report(path: Path) -> None:
    found = conversation_dataset(str(path), str(path.parent), phrases=True)
    texts = [message.content for message in found[0].messages[1::2]]
    assert texts == ["big cell size", "yes, granularity", "no cytoplasm vacuole"]
    assert phrase("label", "Neutrophil") == "Neutrophil"
    plain = rows_at(path.parent, [{**row("1", "a.png", "x", "y"), "meta": {}}])
    with pytest.raises(DataError, match=r"rows.jsonl.*meta.attribute and meta.answer.*phrases=false"):
        conversation_dataset(str(plain), str(path.parent), phrases=True)[0]


def test_what_decides_a_conversation_is_in_the_fingerprint(path: Path) -> None:
    ways = ({}, {"turns": 2}, {"phrases": True}, {"center_crop": 0.5}, {"shuffle": 0})
    prints = {conversation_dataset(str(path), str(path.parent), **way).fingerprint() for way in ways}
    assert len(prints) == 5


def test_a_row_that_cannot_be_read_is_alone_and_named(path: Path) -> None:
    with path.open("a") as file:
        file.write('{"id": "5", "images": ["a.png"], "messages": "none"}\n')
    found = conversation_dataset(str(path), str(path.parent))
    assert len(found) == 3 and len(found[0].messages) == 6
    with pytest.raises(DataError, match="line 5"):
        found[2]
