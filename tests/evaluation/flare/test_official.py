"""The published script's numbers on the cases whose results are known, each by its name."""

import math

import pytest

from medtune.evaluation.flare.official import (
    official_balanced_accuracy,
    official_detection_f1,
    official_instance_f1,
    official_label_f1,
    official_mae,
    official_parts,
)

NESTED, FLAT = "[[0, 0, 10, 10]]", "[0, 0, 10, 10]"
HALF = "[[0, 0, 10, 5]]"  # IoU with NESTED is 0.5
COMMAS = "Dental Caries; Endodontic Treatment, Restorative Treatment, and Complications"


@pytest.mark.parametrize(
    ("pairs", "value"),
    [
        pytest.param([(NESTED, NESTED)], 1.0, id="identical nested boxes"),
        pytest.param([(FLAT, FLAT)], 0.0, id="identical flat boxes"),
        pytest.param([(NESTED, FLAT)], 0.0, id="a flat prediction of a nested box"),
        pytest.param([(NESTED, HALF)], 0.0, id="an IoU of exactly one half"),
        pytest.param([(NESTED, "a lesion on the left"), (NESTED, NESTED)], 1.0, id="garbage and one good prediction"),
        pytest.param([(NESTED, "[[0, 0, 10, 10], [20, 20, 30, 30]]")], 2 / 3, id="two predictions of one box"),
        pytest.param([("[]", "[]")], 0.0, id="both empty"),
        pytest.param([(NESTED, "None")], 0.0, id="a literal that is no list misses all"),
        pytest.param([(NESTED, "[(0, 0, 10, 10)]")], 1.0, id="tuples are boxes"),
        pytest.param(
            [("[[0, 0, 10, 10], [2, 0, 12, 10]]", "[[1, 0, 11, 10], [5, 0, 15, 10]]")], 1.0, id="greedy, in order"
        ),
        pytest.param(
            [("[[1, 0, 11, 10], [4, 0, 14, 10]]", "[[3, 0, 13, 10], [-2, 0, 8, 10]]")], 0.5, id="greedy loses a pair"
        ),
        pytest.param([], 0.0, id="nothing asked"),
    ],
)
def test_detection(pairs, value):
    assert official_detection_f1(pairs) == pytest.approx(value)


@pytest.mark.parametrize(
    ("pairs", "value"),
    [
        pytest.param([('{"1": [[0, 0, 10, 10]]}', '{"1": [[0, 0, 10, 5]]}')], 1.0, id="an IoU of exactly one half"),
        pytest.param(
            [('{"1": [[0, 0, 9, 9]], "2": [[20, 20, 30, 30]]}', '{"1": [[0, 0, 9, 9]]}')],
            2 / 3,
            id="one of two classes",
        ),
        pytest.param([('{"1": [[0, 0, 9, 9]]}', "{'1': [[0, 0, 9, 9]]}")], 0.0, id="single quotes"),
        pytest.param([('{"1": [[0, 0, 9, 9]]}', "[[0, 0, 9, 9]]")], 0.0, id="a list without classes"),
        pytest.param([('{"1": [[0, 0, 9, 9]]}', '{"2": [[0, 0, 9, 9]]}')], 0.0, id="the wrong class"),
        pytest.param(
            [('{"1": [[0, 0, 9, 9]]}', "x"), ('{"1": [[0, 0, 9, 9]]}', '{"1": [[0, 0, 9, 9]]}')],
            1.0,
            id="garbage is left out",
        ),
    ],
)
def test_instance_detection(pairs, value):
    assert official_instance_f1(pairs) == pytest.approx(value)


@pytest.mark.parametrize(
    ("pairs", "value"),
    [
        pytest.param([("Dental Caries", COMMAS)], 0.4, id="a label that holds commas becomes three"),
        pytest.param([("Nodule, Fibrosis", "fibrosis;nodule")], 1.0, id="commas and semicolons, any case"),
        pytest.param([("Nodule", "")], 0.0, id="an empty prediction"),
        pytest.param([("Nodule", None), ("Nodule", "Nodule")], 1.0, id="a prediction that is no text is left out"),
    ],
)
def test_multi_label(pairs, value):
    assert official_label_f1(pairs) == pytest.approx(value)


@pytest.mark.parametrize(
    ("pairs", "value"),
    [
        pytest.param([("12", "12"), ("3", "x")], math.inf, id="a prediction that is no number"),
        pytest.param([("10", "12"), (3, "4")], 1.5, id="numbers"),
        pytest.param([("3", "3,5")], math.inf, id="a decimal comma"),
        pytest.param([("3", "33%")], math.inf, id="a percent sign"),
    ],
)
def test_counting_and_regression(pairs, value):
    assert official_mae(pairs) == value


@pytest.mark.parametrize(
    ("pairs", "value"),
    [
        pytest.param([("A", "a "), ("B", "A")], 0.5, id="stripped and in lower case"),
        pytest.param([("A", "A: benign"), ("A", "A")], 0.5, id="more than the letter is wrong"),
        pytest.param([("A", "A"), ("A", "A"), ("A", "B"), ("B", "A")], 1 / 3, id="mean recall of A and B"),
        pytest.param([("A", None), ("B", "B")], 0.5, id="no prediction is wrong"),
    ],
)
def test_classification(pairs, value):
    assert official_balanced_accuracy(pairs) == pytest.approx(value)


def test_the_parts_of_a_number_sum_to_it():
    pairs = [(NESTED, NESTED), (NESTED, "x"), (NESTED, "[[0, 0, 10, 10], [20, 20, 30, 30]]")]
    parts = [part for pair in pairs for part in official_parts("detection", pair)]
    assert (
        sum(top for _, top, _ in parts) / sum(bottom for _, _, bottom in parts) == official_detection_f1(pairs) == 0.8
    )
    assert official_parts("counting", ("3", "x")) == [] and official_parts("counting", ("3", "5")) == [
        (("",), 2.0, 1.0)
    ]
    assert official_parts("classification", ("A", "b")) == [(("a",), 0.0, 1.0)]
