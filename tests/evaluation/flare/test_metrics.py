"""FLARE's metrics against values by hand, scikit-learn and scipy's assignment."""

import math
import random

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import f1_score, mean_absolute_error, root_mean_squared_error

from medtune.evaluation.flare.metrics import (
    THRESHOLDS,
    Counts,
    absolute_errors,
    box_counts,
    class_counts,
    example_f1,
    iou_matrix,
    label_counts,
    mae,
    rmse,
)

UNIT = (0.0, 0.0, 10.0, 10.0)


@pytest.mark.parametrize(
    ("other", "value"),
    [
        pytest.param((0, 0, 10, 10), 1.0, id="the same box"),
        pytest.param((0, 0, 10, 5), 0.5, id="half of it"),
        pytest.param((5, 0, 15, 10), 50 / 150, id="moved by a half"),
        pytest.param((5, 5, 15, 15), 25 / 175, id="moved in both directions"),
        pytest.param((2, 2, 4, 4), 0.04, id="inside"),
        pytest.param((10, 0, 20, 10), 0.0, id="touching"),
        pytest.param((50, 50, 60, 60), 0.0, id="apart"),
        pytest.param((5, 5, 5, 5), 0.0, id="without area"),
        pytest.param((10, 10, 0, 0), 0.0, id="turned around"),
        pytest.param((-1e300, -1e300, 1e300, 1e300), 0.0, id="beyond all numbers"),
    ],
)
def test_the_intersection_over_union(other, value):
    assert iou_matrix([UNIT], [other]) == pytest.approx(np.array([[value]]), abs=1e-12)
    assert iou_matrix([other], [UNIT]) == pytest.approx(np.array([[value]]), abs=1e-12)


def test_a_box_without_area_matches_not_even_itself():
    assert iou_matrix([(5, 5, 5, 5)], [(5, 5, 5, 5)])[0, 0] == 0


@pytest.mark.parametrize(
    ("right", "read", "threshold", "counts"),
    [
        pytest.param([UNIT], [(0, 0, 10, 5)], 0.5, (1, 0, 0), id="the threshold is included"),
        pytest.param([UNIT], [(0, 0, 10, 5)], 0.6, (0, 1, 1), id="below the threshold"),
        pytest.param([UNIT], [(0, 0, 10, 3)], 0.3, (1, 0, 0), id="0.3 is included"),
        pytest.param([UNIT], [UNIT, UNIT], 0.5, (1, 1, 0), id="a box twice is found once"),
        pytest.param([UNIT, UNIT], [UNIT], 0.5, (1, 0, 1), id="one box for two"),
        pytest.param([], [UNIT], 0.5, (0, 1, 0), id="nothing to find"),
        pytest.param([UNIT], [], 0.5, (0, 0, 1), id="nothing named"),
        pytest.param([UNIT], None, 0.5, (0, 0, 1), id="not read"),
        pytest.param([], None, 0.5, (0, 0, 0), id="not read and nothing to find"),
        # the first right box fits both, the second only the first: a greedy choice in order finds one
        pytest.param(
            [(1, 0, 11, 10), (4, 0, 14, 10)], [(3, 0, 13, 10), (-2, 0, 8, 10)], 0.5, (2, 0, 0), id="no greedy choice"
        ),
    ],
)
def test_found_boxes(right, read, threshold, counts):
    assert box_counts(right, read, threshold) == counts


def test_the_pairing_is_the_largest_one_in_any_order():
    rng = random.Random(0)

    def boxes():
        corners = [(rng.randint(0, 8), rng.randint(0, 8)) for _ in range(rng.randint(0, 6))]
        return [(x, y, x + rng.randint(1, 8), y + rng.randint(1, 8)) for x, y in corners]

    for _ in range(300):
        right, read = boxes(), boxes()
        for threshold in THRESHOLDS:
            counts = box_counts(right, read, threshold)
            fits = iou_matrix(right, read) >= threshold
            rows, columns = linear_sum_assignment(fits, maximize=True)
            most = int(fits[rows, columns].sum())
            assert counts == (most, len(read) - most, len(right) - most)
            assert box_counts(right[::-1], read[::-1], threshold) == counts


def test_f1_by_hand():
    assert Counts(3, 1, 2).f1 == pytest.approx(2 * 3 / (6 + 1 + 2))
    assert math.isnan(Counts(0, 0, 0).f1) and Counts(0, 0, 1).f1 == 0
    assert Counts(1, 2, 3) + Counts(4, 5, 6) == Counts(5, 7, 9)


def test_boxes_count_in_their_class_alone():
    right = {"1": [UNIT], "2": [(20, 20, 30, 30)]}
    read = {"2": [UNIT, (20, 20, 30, 30)], "x": [UNIT]}
    assert class_counts(right, read, 0.5) == {"1": (0, 0, 1), "2": (1, 1, 0), "x": (0, 1, 0)}
    assert class_counts(right, None, 0.5) == {"1": (0, 0, 1), "2": (0, 0, 1)}


def test_micro_and_example_f1_of_labels_are_scikit_learns():
    rng = np.random.default_rng(0)
    gold, read = rng.integers(0, 2, (2, 40, 5))
    names = np.array(list("abcde"))
    sets = [({*names[row > 0]}, {*names[other > 0]}) for row, other in zip(gold, read, strict=True)]
    total = Counts(0, 0, 0)
    for pair in sets:
        total += label_counts(*pair)
    assert total.f1 == pytest.approx(f1_score(gold, read, average="micro"))
    mean = np.mean([example_f1(*pair) for pair in sets])
    assert mean == pytest.approx(f1_score(gold, read, average="samples", zero_division=1.0))


def test_the_example_f1_of_nothing_is_one_and_of_an_unread_answer_zero():
    assert [example_f1((), ()), example_f1((), None), example_f1(("a",), None), example_f1((), ("a",))] == [1, 0, 0, 0]
    assert label_counts(("a", "b"), None) == (0, 0, 2)


def test_errors_are_those_of_scikit_learn_and_unread_answers_are_left_out_or_zero():
    right, read = [10.0, 20.0, 30.0], [12.0, None, 27.0]
    assert absolute_errors(right, read) == [2.0, 3.0]
    assert absolute_errors(right, read, unread=0.0) == [2.0, 20.0, 3.0]
    errors = absolute_errors(right, read)
    assert mae(errors) == mean_absolute_error([10, 30], [12, 27]) == 2.5
    assert rmse(errors) == pytest.approx(root_mean_squared_error([10, 30], [12, 27])) == pytest.approx(math.sqrt(6.5))
    assert math.isnan(mae([])) and math.isnan(rmse([]))
