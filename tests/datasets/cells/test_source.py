"""Every kind of sample: valid, repeatable, and answering from the cell that its picture shows."""

import pickle

import numpy as np
import pytest

from medtune.data.multiple_choice import fixed_order
from medtune.data.sample import Sample
from medtune.data.source import SampleSource
from medtune.datasets.cells import KINDS, rendered_cells_dataset
from medtune.errors import ConfigError, DataError


@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_valid_and_repeatable(kind: str) -> None:
    source = rendered_cells_dataset(200, 3, kind)
    assert isinstance(source, SampleSource)
    again = pickle.loads(pickle.dumps(source))
    ids = set()
    for index in range(len(source)):
        sample = source[index]
        assert Sample.from_dict(sample.to_dict(), f"{kind} {index}") == sample
        assert again[index] == sample
        ids.add(sample.id)
    assert len(ids) == 200
    with pytest.raises(IndexError):
        source[200]


@pytest.mark.parametrize("kind", ["reports", "questions", "attributes", "instructions"])
def test_pictures_do_not_depend_on_kind_or_order(kind: str) -> None:
    source = rendered_cells_dataset(6, 3, kind)
    other = rendered_cells_dataset(2, 3, "reports", offset=4)
    (late,) = other.open_images(other[1])
    (same,) = source.open_images(source[5])
    assert source[5].images == other[1].images == ("cell-000005.png",)
    assert np.array_equal(np.asarray(late), np.asarray(same))
    assert source.image_sizes(source[5]) == [same.size]


def test_seed_changes_words_and_picture() -> None:
    first, second = (rendered_cells_dataset(5, seed, "instructions") for seed in (0, 1))
    assert first[0] != second[0]
    assert not np.array_equal(*(np.asarray(source.open_images(source[0])[0]) for source in (first, second)))


def test_text_samples_have_no_image() -> None:
    source = rendered_cells_dataset(3, 0, "text")
    assert source[0].images == ()
    assert source.open_images(source[0]) == []


def test_questions_carry_what_the_protocols_need() -> None:
    source = rendered_cells_dataset(300, 0, "questions")
    asked = set()
    for index in range(300):
        sample = source[index]
        meta = sample.meta
        assert [message.content for message in sample.messages] == [f"What is the {meta['attribute']}?", meta["answer"]]
        assert meta["answer"] == source.attributes(index)[meta["attribute"]]
        assert meta["answer"] in meta["options"] == fixed_order(meta["options"])
        assert "nil" not in meta["options"]
        asked.add(meta["attribute"])
    assert len(asked) == 12


def test_fingerprint_follows_the_arguments() -> None:
    base = dict(size=5, seed=0, kind="reports")
    changed = [
        base | change for change in ({"size": 6}, {"seed": 1}, {"kind": "text"}, {"offset": 1}, {"natural": 0.5})
    ]
    prints = [rendered_cells_dataset(**arguments).fingerprint() for arguments in (base, *changed)]
    assert len(set(prints)) == len(prints)
    assert rendered_cells_dataset(**base).fingerprint() == prints[0]


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ConfigError, match="instructions"):
        rendered_cells_dataset(5, 0, "instruction")
    with pytest.raises(ConfigError, match="size 0"):
        rendered_cells_dataset(0, 0, "text")
    source = rendered_cells_dataset(5, 0, "reports")
    with pytest.raises(DataError, match=r"slide\.png"):
        source.open_images(Sample("x", ("slide.png",), source[0].messages))
