"""Measures of a selection model against scikit-learn and by hand."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, precision_score, roc_auc_score

from medtune.curation.selector_measures import ScoredPairs, agreement, measured, rank_measures, top_measures
from medtune.curation.selector_report import measures_page
from medtune.errors import DataError

RNG = np.random.default_rng(3)
PREFERRED = RNG.normal(0.6, 1.0, 60).round(1)
REJECTED = RNG.normal(0.0, 1.0, 60).round(1)
REJECTED[:3] = PREFERRED[:3]  # ties within pairs, and by rounding between them


def pairs(judge: np.ndarray | None = None, n: int = 60) -> ScoredPairs:
    table = np.full((n, 2), np.nan) if judge is None else judge
    names = [f"i{number // 2}.png" for number in range(n)]
    return ScoredPairs([str(number) for number in range(n)], names, ["human"] * n, PREFERRED[:n], REJECTED[:n], table)


def test_auc_and_map_are_scikit_learns_and_acc_and_mr_are_counted() -> None:
    found = rank_measures(PREFERRED, REJECTED)
    labels, scores = [1] * 60 + [0] * 60, np.concatenate([PREFERRED, REJECTED])
    assert found["auc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert found["map"] == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
    ties = sum(one == other for one, other in zip(PREFERRED, REJECTED, strict=True))
    wins = sum(one > other for one, other in zip(PREFERRED, REJECTED, strict=True))
    assert ties >= 3 and found["accuracy"] == (wins + ties / 2) / 60
    ranks = [1 + sum(scores > value) + (sum(scores == value) - 1) / 2 for value in PREFERRED]
    assert found["mean_rank"] == pytest.approx(np.mean(ranks) / 120)


def test_a_perfect_a_reversed_and_a_blind_ranking() -> None:
    up = np.arange(10.0)
    perfect, reversed_, blind = (rank_measures(*two) for two in ((up + 20, up), (up, up + 20), (up * 0, up * 0)))
    assert (perfect["accuracy"], perfect["auc"], perfect["map"]) == pytest.approx((1, 1, 1))
    assert perfect["mean_rank"] == 5.5 / 20 and reversed_["mean_rank"] == 15.5 / 20
    assert (reversed_["accuracy"], reversed_["auc"]) == (0, 0)
    assert list(blind.values()) == pytest.approx([0.5, 0.5, 10.5 / 20, 0.5])


def test_precision_and_f1_at_k_are_scikit_learns_with_the_best_k_percent_as_prediction() -> None:
    found = top_measures(PREFERRED, REJECTED, (10, 50, 100))
    labels = np.stack([np.ones(60), np.zeros(60)], axis=1).reshape(-1)
    scores = np.stack([PREFERRED, REJECTED], axis=1).reshape(-1)
    for place, percent in enumerate((10, 50, 100)):
        taken = np.zeros(120)
        taken[np.argsort(-scores, kind="stable")[: 120 * percent // 100]] = 1
        assert found["precision"][place] == pytest.approx(precision_score(labels, taken))
        assert found["f1"][place] == pytest.approx(f1_score(labels, taken))
    assert found["precision"][-1] == 0.5 and found["f1"][-1] == pytest.approx(2 / 3)


def test_measures_have_intervals_over_images_that_hold_them() -> None:
    found = measured(pairs())
    assert (found["pairs"], found["images"], found["sources"]) == (60, 30, {"human": 60})
    for one in found["measures"].values():
        low, high = one["interval"]
        assert low < one["value"] < high
    assert not found["measures"]["mean_rank"]["higher_is_better"] and found["agreement"] is None


def test_the_judges_agreement_is_beside_the_models_on_the_same_pairs() -> None:
    judge = np.full((60, 2), np.nan)
    judge[:20] = [[8, 3]] * 10 + [[2, 2]] * 6 + [[1, 4]] * 4
    found = agreement(pairs(judge))
    assert found is not None and found["judge_ties"] == 6
    assert found["judge"]["value"] == (10 + 3) / 20 and found["judge"]["n"] == 20
    own = rank_measures(PREFERRED[:20], REJECTED[:20])["accuracy"]
    assert found["selector"]["value"] == own
    assert found["difference"]["value"] == pytest.approx(own - 13 / 20)


def test_the_page_shows_the_measures_and_no_text_of_the_data() -> None:
    judge = np.tile(np.array([[5.0, 3.0]]), (60, 1))
    scored = pairs(judge)
    page = measures_page(measured(scored), scored)
    for text in ("Order of pairs", "mean rank", "Agreement with people", "selector minus judge", "<img"):
        assert text in page
    assert "i3.png" not in page


def test_no_pair_is_an_error() -> None:
    with pytest.raises(DataError, match="no held-out pair"):
        measured(pairs(n=0))
