import math

import numpy as np
import pytest
from scipy.stats import binomtest

from medtune.errors import DataError
from medtune.evaluation.paired import mcnemar


@pytest.mark.parametrize(("first", "second"), [(0, 1), (1, 5), (13, 61), (10, 10), (300, 260), (0, 40)])
def test_mcnemar_is_scipys_exact_binomial(first, second):
    test = mcnemar([True] * first + [False] * second + [True] * 9, [False] * first + [True] * second + [True] * 9)
    assert (test.both_right, test.only_first, test.only_second, test.both_wrong) == (9, first, second, 0)
    assert test.n == first + second + 9
    assert test.p_value == pytest.approx(binomtest(first, first + second, 0.5).pvalue, abs=1e-12)


def test_mcnemar_golden():
    # 1 against 8 of 9: twice the lower tail, 2 (1 + 9) / 2^9
    test = mcnemar([True] + [False] * 8, [False] + [True] * 8)
    assert test.p_value == pytest.approx(20 / 512, abs=1e-15)


def test_mcnemar_counts_are_the_two_by_two_table_and_the_order_does_not_matter():
    rng = np.random.default_rng(3)
    first, second = rng.random(200) < 0.6, rng.random(200) < 0.7
    test, turned = mcnemar(list(first), list(second)), mcnemar(list(second), list(first))
    assert test.both_right == int((first & second).sum()) and test.both_wrong == int((~first & ~second).sum())
    assert test.only_first == int((first & ~second).sum()) == turned.only_second
    assert test.p_value == pytest.approx(turned.p_value, abs=1e-15)


def test_two_models_that_never_disagree():
    assert mcnemar([True, False], [True, False]).p_value == 1.0
    empty = mcnemar([], [])
    assert empty.n == 0 and empty.p_value == 1.0


def test_twenty_thousand_disagreements_stay_exact_and_finite():
    test = mcnemar([True] * 10_000 + [False] * 10_400, [False] * 10_000 + [True] * 10_400)
    assert math.isfinite(test.p_value) and 0.004 < test.p_value < 0.006  # the normal's: 2 (1 - Phi(2.80)) = 0.0052


def test_answers_that_cannot_be_paired_are_refused():
    with pytest.raises(DataError, match="2 answers cannot be paired with 1"):
        mcnemar([True, False], [True])


def test_the_plain_values_hold_the_definition():
    values = mcnemar([True, True], [False, True]).to_dict()
    assert values["only_first"] == 1 and values["n"] == 2 and values["p_value"] == 1.0
    assert "exact" in values["definition"] and "independent" in values["definition"]
