import numpy as np
import pytest

from medtune.data.balance import balanced_weights
from medtune.data.batching import BatchPlan


def test_a_weight_is_the_mean_rarity_of_the_different_words():
    # a stands 4 times, b 2 times, c once
    weights = balanced_weights(["A a b", "a", "a, b. c 3.5"])
    expected = np.array([(1 / 4 + 1 / 2) / 2, 1 / 4, (1 / 4 + 1 / 2 + 1) / 3])
    np.testing.assert_allclose(weights, expected / expected.mean(), rtol=1e-12)


def test_case_numbers_and_order_change_nothing_and_hyphens_make_one_word():
    first = balanced_weights(["Segmented-Bilobed nucleus 12.5 mm", "round nucleus", "round nucleus"])
    second = balanced_weights(["nucleus segmented-bilobed 7.3 MM", "nucleus, Round", "Nucleus round 4"])
    np.testing.assert_array_equal(first, second)
    half = balanced_weights(["segmented bilobed nucleus mm", "round nucleus", "round nucleus"])
    assert half[0] > first[0] * 1.001


def test_a_longer_report_is_not_favoured_for_its_length():
    words = [f"w{letter}" for letter in "abcdefgh"]
    np.testing.assert_allclose(balanced_weights([" ".join(words), "x"] * 3), 1.0)


def test_reports_without_words_weigh_as_little_as_any():
    weights = balanced_weights(["common", "common", "rare", "", "3.5"])
    assert weights[3] == weights[4] == weights[0] < weights[2]
    np.testing.assert_array_equal(balanced_weights(["", "1"]), [1.0, 1.0])
    assert len(balanced_weights([])) == 0


def test_samples_of_rare_words_are_drawn_in_proportion_to_their_weights():
    reports = ["big cell"] * 90 + ["small cell"] * 9 + ["odd cell"]
    weights = balanced_weights(reports)
    plan = BatchPlan(np.full(100, 5), 8, seed=1, weights=weights)
    drawn = np.bincount([index for epoch in range(400) for step in plan.steps(epoch) for index in step], minlength=100)
    assert drawn.sum() == 40_000
    expected = 40_000 * weights / weights.sum()
    for group in (slice(0, 90), slice(90, 99), slice(99, 100)):
        assert drawn[group].sum() == pytest.approx(expected[group].sum(), rel=0.03)
    assert drawn[99] > 30 * drawn[:90].mean()


def test_a_balanced_plan_is_a_function_of_seed_and_epoch():
    lengths, weights = list(range(50)), np.linspace(1, 3, 50)
    for bucket in (True, False):
        plan = BatchPlan(lengths, 4, 3, bucket=bucket, weights=weights, indices=np.arange(100, 150))
        again = BatchPlan(lengths, 4, 3, bucket=bucket, weights=weights, indices=np.arange(100, 150))
        assert plan.steps(2) == again.steps(2)
        assert len({str(plan.steps(epoch)) for epoch in range(4)}) == 4
        assert len(plan.steps(0)) == len(plan) and {len(step) for step in plan.steps(0)[:-1]} == {4}
        assert {index for step in plan.steps(0) for index in step} < set(range(100, 150))


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0], [1.0, -1.0], [1.0, float("nan")], [1.0, float("inf")]])
def test_impossible_weights_are_refused(weights):
    with pytest.raises(ValueError, match="positive numbers"):
        BatchPlan([1, 2], 1, 0, weights=weights)


def test_weights_need_an_order_of_their_own():
    with pytest.raises(ValueError, match="shuffle=False"):
        BatchPlan([1, 2], 1, 0, shuffle=False, weights=[1.0, 2.0])
