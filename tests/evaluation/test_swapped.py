import random
from collections import Counter

import pytest

from medtune.errors import DataError
from medtune.evaluation.swapped import swap_images
from tests.evaluation.tools import question


def many(answers: list[str]) -> list:
    return [question(f"q{i}", "cell size", ["big", "small"], one, f"{i}.png") for i, one in enumerate(answers)]


@pytest.mark.parametrize("big", [1, 5, 10, 15, 20])
def test_a_permutation_without_fixed_point_that_changes_as_many_answers_as_can_be(big):
    samples = many(["big"] * big + ["small"] * (20 - big))
    random.Random(0).shuffle(samples)
    shown = swap_images(samples, seed=5)
    assert Counter(one.images for one in shown) == Counter(one.images for one in samples)
    assert all(new.images != old.images for new, old in zip(shown, samples, strict=True))
    differing = sum(one.meta["shown_answer"] != one.meta["answer"] for one in shown)
    assert differing == 2 * min(big, 20 - big)


def test_swapped_samples_keep_all_but_the_image(questions):
    by_id = {one.id: one for one in questions}
    for old, new in zip(questions, swap_images(questions), strict=True):
        assert (new.id, new.messages, new.meta["answer"]) == (old.id, old.messages, old.meta["answer"])
        assert new.meta["swapped"] is True
        partner = by_id[new.meta["swapped_with"]]
        assert new.images == partner.images
        assert new.meta["shown_answer"] == partner.meta["answer"]


def test_the_seed_decides():
    samples = many(["big", "small"] * 20)
    assert swap_images(samples, 1) == swap_images(samples, 1)
    assert swap_images(samples, 1) != swap_images(samples, 2)


def test_questions_on_one_image_get_another_image():
    samples = [question(f"q{i}", "cell size", ["big", "small"], "big", f"{i // 4}.png") for i in range(8)]
    assert all(new.images != old.images for new, old in zip(swap_images(samples), samples, strict=True))


def test_an_attribute_with_one_image_takes_another_attributes_image():
    samples = [*many(["big", "small"]), question("t", "granule type", ["round", "small"], "round", "t.png")]
    shown = swap_images(samples)[2]
    assert shown.images != ("t.png",)
    assert shown.meta["shown_answer"] is None


def test_one_image_cannot_be_swapped():
    with pytest.raises(DataError, match="same image"):
        swap_images(many(["big"]))
