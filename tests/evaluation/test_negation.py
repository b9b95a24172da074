"""A value that an answer denies is not read as its answer."""

import pytest

from medtune.evaluation.parsing import parse_letter, parse_value

LESION = ["benign", "malignant"]
SIZE = ["big", "small", "round"]


def read(text: str, options: list[str], attribute: str = "lesion type") -> str | None:
    index = parse_value(text, attribute, options)
    return None if index is None else options[index]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no evidence of a malignant lesion, it is benign", "benign"),
        ("There is no evidence that it is malignant. The lesion is benign.", "benign"),
        ("It is benign, with no sign of malignant change.", "benign"),
        ("The lesion is not malignant but benign", "benign"),
        ("I do not think it is malignant, it is benign.", "benign"),
        ("A malignant lesion is ruled out; it is benign", "benign"),
        ("Malignant disease is unlikely. This is benign.", "benign"),
        ("malignant cells are not seen, the lesion is benign", "benign"),
        ("This is benign rather than malignant", "benign"),
        ("benign, not malignant", "benign"),
        ("It isn't benign: it is malignant", "malignant"),
        ("The lesion is negative for malignant cells and is benign", "benign"),
        ("The lesion without malignant features is benign", "benign"),
    ],
)
def test_the_value_that_is_denied_gives_way_to_the_one_that_is_affirmed(text, value):
    assert read(text, LESION) == value


@pytest.mark.parametrize(
    "text",
    [
        "neither benign nor malignant",
        "It is neither malignant nor benign.",
        "The lesion is not malignant",
        "no malignant lesion",
        "It cannot be malignant",
        "It's never benign",
        "Malignant can be excluded",
        "There is no suspicion that this is malignant",
    ],
)
def test_an_answer_that_only_denies_is_unread(text):
    assert read(text, LESION) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("No, it is big.", "big"),
        ("No it is big", "big"),
        ("There is no doubt that it is big", "big"),
        ("It is not only big", "big"),
        ("The cell without granules is big", "big"),
        ("The cell shows no granules and is big", "big"),
        ("It is big and vacuoles are not seen", "big"),
        ("It has no vacuole but a round shape is seen: it is round", "round"),
        ("not the smallest that I have seen in all these years of work is big", "big"),
        ("normal, it is big", "big"),
    ],
)
def test_a_negation_of_something_else_denies_no_value(text, value):
    assert read(text, SIZE, "cell size") == value


def test_values_that_are_negations_themselves_are_read():
    assert read("It is not visible", ["not visible", "visible"], "margin") == "not visible"
    assert read("It is not visible.", ["visible", "absent"], "margin") is None
    assert read("There is no granularity", ["yes", "no"], "granularity") == "no"
    assert read("no finding", ["effusion", "no finding"], "result") == "no finding"


def test_letters_are_read_by_the_papers_parser_whatever_the_answer_denies():
    assert parse_letter("It is not A. The correct answer is B.", 3) == 1
    assert parse_letter("not malignant", 3) is None
