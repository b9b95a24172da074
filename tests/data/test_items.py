"""What items say of their size before training is what they turn out to be."""

import pickle
import random
from dataclasses import FrozenInstanceError

import pytest

from medtune.data.items import Row, SampleItems, measured_row
from medtune.data.randomness import sample_rng
from medtune.data.source import JsonlSource
from medtune.errors import DataError
from tests.data.tools import LetterTransform, row, shuffle_letters, unchanged, write_pictures, write_rows


@pytest.fixture
def source(tmp_path):
    question = {"role": "user", "content": "what?"}
    asked = row("asked", "cells", ("1.png", "17.png"))
    asked["messages"].insert(0, question)
    rows = [asked, row("report", "three words here"), {"id": "q", "messages": [question]}, row("long", "x" * 201)]
    return JsonlSource(write_rows(tmp_path / "a.jsonl", rows), write_pictures(tmp_path / "images", 18))


@pytest.mark.parametrize("change", [unchanged, shuffle_letters])
def test_the_measure_is_that_of_the_item(source, change):
    items = SampleItems(change)
    for index, tiles in ((0, 2 + 3), (1, 0)):
        item = items(source, index, sample_rng(1, 0, index), LetterTransform())
        (size,) = items.measure(source, index, sample_rng(1, 0, index), LetterTransform())
        supervised = sum(label != -100 for label in item["labels"])
        assert size == Row(len(item["tokens"]), supervised, tiles, drawn=False)


def test_the_method_decides_what_is_measured(source):
    (size,) = SampleItems(lambda sample, rng: source[1]).measure(source, 0, random.Random(0), LetterTransform())
    assert size.tokens == len("three words here")


def test_what_no_item_can_hold_is_refused_by_name(source):
    items = SampleItems(unchanged)
    for index, said in ((2, r"line 3 \(id 'q'\): no assistant message"), (3, r"\(id 'long'\): 201 tokens, the limit")):
        with pytest.raises(DataError, match=said):
            items.measure(source, index, random.Random(0), LetterTransform())


def test_a_sample_may_be_as_long_as_the_model_takes(source):
    class Short(LetterTransform):
        max_seq_len = len("what?cells")

    (size,) = SampleItems(unchanged).measure(source, 0, random.Random(0), Short())
    assert size.tokens == Short.max_seq_len
    Short.max_seq_len -= 1
    with pytest.raises(DataError, match="10 tokens, the limit is 9"):
        SampleItems(unchanged).measure(source, 0, random.Random(0), Short())


def test_a_row_of_which_nothing_is_supervised_is_refused(source):
    class Unlearned(LetterTransform):
        def token_counts(self, sample, sizes=None):
            return 7, 0

    assert measured_row(source, source[0], [(16, 33)], LetterTransform(), drawn=True) == Row(10, 5, 3, drawn=True)
    with pytest.raises(DataError, match=r"line 1 \(id 'asked'\): no token is supervised"):
        measured_row(source, source[0], [], Unlearned())


def test_items_are_values(source):
    items = SampleItems(unchanged)
    assert items == SampleItems(unchanged) != SampleItems(shuffle_letters)
    assert pickle.loads(pickle.dumps(items)) == items
    with pytest.raises(FrozenInstanceError):
        items.sample_transform = shuffle_letters
