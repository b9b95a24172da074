import random
from collections import Counter

import pytest

from medtune.data.multiple_choice import (
    fixed_order,
    multiple_choice_answer,
    multiple_choice_prompt,
    open_question,
    option_letter,
    sampled_options,
)
from medtune.errors import DataError


def test_the_published_wording():
    prompt = multiple_choice_prompt(open_question("cytoplasm colour"), ["blue", "light blue", "purple blue"])
    assert prompt == (
        "What is the cytoplasm colour?\nA. blue\nB. light blue\nC. purple blue\n"
        'Response with only the letter of the correct choice, starting with "The correct answer is [A or B or C].".'
    )
    assert multiple_choice_answer(["blue", "light blue"], "light blue") == "The correct answer is B."


def test_fixed_order_is_alphabetical_with_yes_first():
    assert fixed_order(["no", "yes", "no"]) == ["yes", "no"]
    assert fixed_order(["small", "round", "coarse", "round"]) == ["coarse", "round", "small"]


def test_sampled_options_hold_the_answer_in_every_place():
    values = [f"v{number}" for number in range(9)]
    places = Counter()
    for seed in range(500):
        options = sampled_options("v3", values, random.Random(seed))
        assert len(options) == len(set(options)) == 5 and set(options) <= set(values)
        places[option_letter(options, "v3")] += 1
    assert set(places) == set("ABCDE") and min(places.values()) > 60


def test_sampled_options_take_what_there_is():
    assert sorted(sampled_options("a", ["a", "b", "c"], random.Random(0))) == ["a", "b", "c"]
    assert sorted(sampled_options("new", ["a"], random.Random(0), distractors=2)) == ["a", "new"]


@pytest.mark.parametrize("options", [["a"], [], ["a", "a"], [str(number) for number in range(27)]])
def test_options_that_letters_cannot_tell_apart(options):
    with pytest.raises(DataError, match="options"):
        multiple_choice_prompt("What?", options)


def test_an_answer_that_is_no_option():
    with pytest.raises(DataError, match="'c' is not among"):
        option_letter(["a", "b"], "c")
