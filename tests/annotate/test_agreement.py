"""Cohen's and Fleiss' kappa, against values worked out by hand and scikit-learn."""

import itertools
import math

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from medtune.annotate.agreement import agreement, agreement_text, cohen_kappa, fleiss_kappa
from medtune.judges.annotations import PREFERENCES

# A table of 10 questions, 14 annotators and 5 categories whose kappa is known to be 0.210 (P = 0.378, P_e = 0.213).
TABLE = [
    [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
]  # fmt: skip


def test_fleiss_kappa_of_a_known_table() -> None:
    assert fleiss_kappa(TABLE) == pytest.approx(0.20993, abs=1e-5)


def test_fleiss_kappa_by_hand_with_questions_of_two_and_of_three_annotators() -> None:
    # P_1 = 1, P_2 = (4 + 1 - 3) / 6 = 1/3; p = (4/5, 1/5), P_e = 17/25.
    assert fleiss_kappa([[2, 0], [2, 1], [1, 0]]) == pytest.approx((2 / 3 - 17 / 25) / (8 / 25))


def test_fleiss_kappa_of_perfect_agreement_is_one_and_of_one_category_undefined() -> None:
    assert fleiss_kappa([[3, 0], [0, 3]]) == pytest.approx(1)
    assert math.isnan(fleiss_kappa([[3, 0], [3, 0]]))
    assert math.isnan(fleiss_kappa([[1, 0]])) and math.isnan(fleiss_kappa([]))


def test_cohen_kappa_by_hand_and_as_scikit_learn() -> None:
    # 20 both yes, 15 both no, 5 and 10 differ: observed 0.7, expected 0.5.
    one = ["first"] * 20 + ["first"] * 5 + ["second"] * 10 + ["second"] * 15
    other = ["first"] * 20 + ["second"] * 5 + ["first"] * 10 + ["second"] * 15
    assert cohen_kappa(one, other) == pytest.approx(0.4)
    assert math.isnan(cohen_kappa(["both"] * 3, ["both"] * 3))


def test_agreement_of_three_annotators_is_that_of_each_pair_on_the_questions_that_both_have() -> None:
    draw = np.random.default_rng(0)
    made = {
        name: {f"q{i}": str(draw.choice(PREFERENCES)) for i in draw.choice(60, 40, replace=False)} for name in "abc"
    }
    found = agreement((item, name, chosen) for name, of in made.items() for item, chosen in of.items())
    assert [pair["annotators"] for pair in found["pairs"]] == [["a", "b"], ["a", "c"], ["b", "c"]]
    for pair, (one, other) in zip(found["pairs"], itertools.combinations("abc", 2), strict=True):
        both = sorted(made[one].keys() & made[other].keys())
        sides = [made[one][item] for item in both], [made[other][item] for item in both]
        assert pair["questions"] == len(both)
        assert pair["cohen"] == pytest.approx(cohen_kappa_score(*sides))
    several = {
        item for pair in itertools.combinations("abc", 2) for item in made[pair[0]].keys() & made[pair[1]].keys()
    }
    assert found["questions"] == len(several)
    assert "Fleiss' kappa" in agreement_text(found)


def test_agreement_of_nobody_is_undefined() -> None:
    found = agreement([("q", "a", "first")])
    assert found == {"questions": 0, "observed": None, "fleiss": None, "pairs": []}
    assert "undefined" in agreement_text(found)
