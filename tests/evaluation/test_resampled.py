import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score, f1_score, roc_auc_score

from medtune.evaluation.resampled import LabelTable, _resampled, f1_difference, intervals, points

KINDS = ("multi_class", "multi_label", "ordinal")


def made_up(kind, n=60, classes=5, seed=0, scores=True):
    rng = np.random.default_rng(seed)
    if kind == "multi_label":
        gold = [np.flatnonzero(row) for row in rng.random((n, classes)) < 0.3]
        read = [np.flatnonzero(row) for row in rng.random((n, classes)) < 0.3]
    else:
        gold = rng.integers(0, classes, (n, 1)).tolist()
        read = [[] if rng.random() < 0.2 else [int(rng.integers(0, classes))] for _ in range(n)]
    values = np.round(rng.normal(size=(n, classes)), 1) if scores else None  # rounded, so that there are ties
    return LabelTable.of(kind, classes, gold, read, values)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_the_resampled_statistics_are_scikit_learns_where_each_image_is_drawn_once(kind, seed):
    table = made_up(kind, seed=seed)
    expected, resampled = points(table), _resampled(table)
    assert set(expected) == set(resampled)
    for name, value in expected.items():
        assert resampled[name](np.ones((1, len(table.gold))))[0] == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_drawn_image_counts_as_often_as_it_was_drawn(kind):
    table, rng = made_up(kind), np.random.default_rng(1)
    counts = rng.integers(0, 3, (1, len(table.gold)))
    rows = np.repeat(np.arange(len(table.gold)), counts[0])
    drawn = LabelTable(kind, table.gold[rows], table.read[rows], table.scores[rows])
    for name, value in points(drawn).items():
        assert _resampled(table)[name](counts.astype(float))[0] == pytest.approx(value, abs=1e-12)


def test_f1_of_one_label_is_scikit_learns_over_the_fixed_classes():
    gold = [0, 0, 1, 1, 2, 2, 0]
    read = [0, 1, 1, 9, 2, 9, 0]  # 9: out of vocabulary
    table = LabelTable.of("multi_class", 3, [[g] for g in gold], [[] if r == 9 else [r] for r in read])
    value = points(table)["f1_macro"]
    assert value == pytest.approx(f1_score(gold, read, labels=[0, 1, 2], average="macro"))
    # By hand: class 0 has tp 2, fn 1, fp 0; class 1 tp 1, fn 1, fp 1; class 2 tp 1, fn 1, fp 0.
    assert value == pytest.approx((4 / 5 + 2 / 4 + 2 / 3) / 3)
    phantom = f1_score(gold, read, average="macro")
    assert phantom == pytest.approx(value * 3 / 4), (
        "a class of its own for what is out of vocabulary would cost a quarter"
    )


def test_classes_that_neither_occur_nor_are_answered_are_left_out():
    perfect = LabelTable.of("multi_class", 4, [[0], [1]], [[0], [1]])
    assert points(perfect)["f1_macro"] == 1.0
    answered = LabelTable.of("multi_class", 4, [[0], [1]], [[0], [3]])
    assert points(answered)["f1_macro"] == pytest.approx(1 / 3)


def test_numbers_of_a_multi_label_set_by_hand():
    table = LabelTable.of("multi_label", 3, [[0, 1], [], [2]], [[0], [1], [2]])
    found = points(table)
    assert found["label_accuracy"] == pytest.approx(7 / 9)
    assert found["f1_macro"] == pytest.approx((1 + 0 + 1) / 3)
    assert found["label_accuracy_strict"] == found["label_accuracy"], "every answer was read"
    assert set(found) == {"f1_macro", "label_accuracy", "label_accuracy_strict"}


def test_kappa_takes_what_is_out_of_vocabulary_as_the_farthest_grade():
    gold = [0, 1, 2, 3, 4, 4]
    table = LabelTable.of("ordinal", 5, [[g] for g in gold], [[0], [2], [], [3], [4], []])
    assert table.grades[1].tolist() == [0, 2, 0, 3, 4, 0]
    expected = cohen_kappa_score(gold, [0, 2, 0, 3, 4, 0], weights="quadratic", labels=[0, 1, 2, 3, 4])
    assert points(table)["quadratic_kappa"] == pytest.approx(expected)
    low = LabelTable.of("ordinal", 5, [[1]] * 2, [[], [1]])
    assert low.grades[1].tolist() == [4, 1]
    assert points(LabelTable.of("ordinal", 5, [[1]] * 2, [[1]] * 2))["quadratic_kappa"] is None


def test_auc_is_scikit_learns_macro_one_against_the_rest():
    rng = np.random.default_rng(0)
    gold = np.arange(40) % 4
    scores = rng.random((40, 4))
    scores /= scores.sum(1, keepdims=True)
    table = LabelTable.of("multi_class", 4, gold[:, None].tolist(), gold[:, None].tolist(), scores)
    assert points(table)["auc_macro"] == pytest.approx(roc_auc_score(gold, scores, multi_class="ovr", average="macro"))
    absent = LabelTable.of("multi_class", 4, [[0], [1]], [[0], [1]], [[1, 0, 0, 0], [0, 1, 0, 0]])
    assert points(absent)["auc_macro"] == 1.0, "classes without an image have no curve"


@pytest.mark.parametrize("kind", KINDS)
def test_intervals_hold_their_value_and_depend_on_the_seed(kind):
    table = made_up(kind, n=150)
    images = list(range(150))
    found = intervals({"a": table}, images, resamples=200)
    for name, value in points(table).items():
        low, high = found[name]
        assert low < value < high < low + 0.5
    assert (
        intervals({"a": table}, images, resamples=200)
        == found
        != intervals({"a": table}, images, resamples=200, seed=1)
    )


def test_the_bootstrap_draws_images_not_answers():
    table = made_up("multi_class", n=60, scores=False)
    twice = LabelTable("multi_class", np.repeat(table.gold, 4, 0), np.repeat(table.read, 4, 0))
    single = intervals({"a": table}, range(60), resamples=300)["f1_macro"]
    assert intervals({"a": twice}, np.repeat(np.arange(60), 4), resamples=300)["f1_macro"] == pytest.approx(single)
    low, high = intervals({"a": twice}, range(240), resamples=300)["f1_macro"]
    assert high - low < 0.7 * (single[1] - single[0])


def test_the_spread_of_the_bootstrap_is_that_of_new_samples():
    rng = np.random.default_rng(0)

    def sample(n):
        gold = rng.integers(0, 3, n)
        read = np.where(rng.random(n) < 0.7, gold, rng.integers(0, 3, n))
        return LabelTable.of("multi_class", 3, gold[:, None].tolist(), read[:, None].tolist())

    values = [points(sample(200))["f1_macro"] for _ in range(200)]
    low, high = intervals({"a": sample(200)}, range(200), resamples=400)["f1_macro"]
    assert high - low == pytest.approx(2 * 1.96 * np.std(values), rel=0.25)


def test_certainty_is_not_claimed():
    right = LabelTable.of("multi_class", 2, [[0], [1]] * 5, [[0], [1]] * 5)
    low, high = intervals({"a": right}, range(10), resamples=50)["f1_macro"]
    assert low == pytest.approx(0.7225, abs=1e-3) and high == 1.0  # Wilson, 10 of 10
    assert intervals({"a": right}, [0] * 10, resamples=50) == {}


def test_the_mean_over_sets():
    first, second = made_up("multi_class", n=80, scores=False), made_up("multi_label", n=80, scores=False, seed=4)
    images = [f"a{n}" for n in range(80)] + [f"b{n}" for n in range(80)]
    low, high = intervals({"a": first, "b": second}, images, resamples=200, only=("f1_macro",))["f1_macro"]
    assert low < (points(first)["f1_macro"] + points(second)["f1_macro"]) / 2 < high


def test_the_difference_of_two_models():
    first = made_up("multi_class", n=100, scores=False)
    better = LabelTable("multi_class", first.gold, np.where(np.arange(100)[:, None] < 50, first.gold, first.read))
    value, interval = f1_difference({"a": first}, {"a": better}, range(100), resamples=200)
    assert value == pytest.approx(points(better)["f1_macro"] - points(first)["f1_macro"])
    assert 0 < interval[0] < value < interval[1]
    assert f1_difference({"a": first}, {"a": first}, range(100), resamples=50) == (0.0, None)
