import math
import warnings

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import balanced_accuracy_score

from medtune.evaluation.metrics import balanced_accuracy, bootstrap_interval, macro, nested_macro, proportion


@pytest.mark.parametrize(("right", "n"), [(0, 7), (7, 7), (3, 10), (431, 600)])
def test_proportion_is_scipys_wilson(right, n):
    number = proportion([True] * right + [False] * (n - right), "")
    interval = binomtest(right, n).proportion_ci(method="wilson")
    assert number.value == pytest.approx(right / n, abs=1e-12)
    assert number.interval == pytest.approx((interval.low, interval.high), abs=1e-12)
    assert number.n == n


def test_wilson_golden():
    # z = 1.959964: (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n) for p = 0.3, n = 10
    assert proportion([True] * 3 + [False] * 7, "").interval == pytest.approx((0.10779, 0.60322), abs=1e-5)


def test_no_answers_are_undefined():
    assert proportion([], "").value is None
    assert math.isnan(balanced_accuracy([], []))


def test_balanced_accuracy_is_scikit_learns():
    rng = np.random.default_rng(0)
    for _ in range(20):
        gold = [str(one) for one in rng.integers(0, 4, 50)]
        predicted = [str(one) for one in rng.integers(0, 6, 50)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scikit-learn remarks on predicted classes that are never gold
            expected = balanced_accuracy_score(gold, predicted)
        assert balanced_accuracy(gold, predicted) == pytest.approx(expected, abs=1e-12)


def test_an_unread_answer_is_a_miss_and_no_class():
    assert balanced_accuracy(["a", "a", "b"], ["a", None, "b"]) == pytest.approx(0.75)


def test_always_the_majority_is_balanced_chance():
    assert balanced_accuracy(["big"] * 9 + ["small"], ["big"] * 10) == pytest.approx(0.5)


def test_bootstrap_of_single_answers_agrees_with_wilson():
    right = [True] * 120 + [False] * 80
    low, high = bootstrap_interval([float(one) for one in right], ["a"] * 200, range(200), macro, resamples=4000)
    assert (low, high) == pytest.approx(proportion(right, "").interval, abs=0.015)


def test_bootstrap_draws_images_not_questions():
    values = [float(image % 2) for image in range(40) for _ in range(10)]
    images = [image for image in range(40) for _ in range(10)]
    clustered = bootstrap_interval(values, ["a"] * 400, images, macro, resamples=2000)
    loose = bootstrap_interval(values, ["a"] * 400, range(400), macro, resamples=2000)
    widths = [high - low for low, high in (clustered, loose)]
    assert widths[0] / widths[1] == pytest.approx(math.sqrt(10), rel=0.15)


def test_bootstrap_is_seeded_and_indifferent_to_order():
    rng = np.random.default_rng(1)
    values, cells, images = rng.integers(0, 2, 90).astype(float), rng.integers(0, 3, 90), rng.integers(0, 30, 90)
    first = bootstrap_interval(values, cells, images, macro, seed=3)
    order = rng.permutation(90)
    assert bootstrap_interval(values[order], cells[order], images[order], macro, seed=3) == first
    assert bootstrap_interval(values, cells, images, macro, seed=4) != first


def test_one_image_has_no_interval_and_equal_answers_have_no_false_certainty():
    assert bootstrap_interval([1.0, 0.0], ["a", "a"], ["x", "x"], macro) is None
    low, high = bootstrap_interval([1.0] * 20, ["a"] * 20, range(20), macro)
    assert (low, high) == pytest.approx(proportion([True] * 20, "").interval)
    assert bootstrap_interval([0.0] * 20, ["a"] * 20, range(20), macro, binary=False) is None


def test_nested_macro_weighs_groups_alike_and_leaves_out_empty_cells():
    reduce = nested_macro(["a", "a", "a", "b"])
    means = np.array([[1.0, 0.0, 0.5, 1.0], [np.nan, 0.0, np.nan, 1.0], [np.nan, np.nan, np.nan, 1.0]])
    assert reduce(means) == pytest.approx([0.75, 0.5, 1.0])
