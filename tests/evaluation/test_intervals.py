"""Every interval is the 2.5% and 97.5% quantile of draws of whole images, written out here a second time."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import f1_score

from medtune.evaluation.measures import Measure, compare_measures, score_measures
from medtune.evaluation.metrics import bootstrap_interval, drawn_weights, macro
from medtune.evaluation.protocols.base import Verdict
from medtune.evaluation.resampled import LabelTable, f1_difference, intervals, percentile_ends
from medtune.evaluation.scoring import macro_interval, paired_difference, score_protocol


def draws_of(images: Sequence[object], resamples: int, seed: int) -> list[list[int]]:
    """Places of the answers in each draw: as many images as there are, with replacement, all answers of each."""
    names = sorted({repr(one) for one in images})
    rng = np.random.default_rng(seed)
    found = []
    for start in range(0, resamples, 100):
        for row in rng.multinomial(len(names), [1 / len(names)] * len(names), size=min(100, resamples - start)):
            times = dict(zip(names, row.tolist(), strict=True))
            found.append([at for at, one in enumerate(images) for _ in range(times[repr(one)])])
    return found


def by_hand(
    images: Sequence[object], statistic: Callable[[list[int]], float], resamples: int, seed: int
) -> list[float]:
    values = [statistic(places) for places in draws_of(images, resamples, seed)]
    return np.quantile([one for one in values if not np.isnan(one)], [0.025, 0.975]).tolist()


def verdict(place: int, image: int, attribute: str, right: bool, **changes: object) -> Verdict:
    fields = {"gold": "a" if place % 3 else "b", "swapped": False, "prior": place % 2 == 0, "chance": 0.5}
    fields |= {"sample_id": f"q{place}", "images": (f"{image}.png",), "attribute": attribute, "in_format": True}
    fields |= {"predicted": fields["gold"] if right else None}
    return Verdict(id=f"q{place}/open", task="open", **{**fields, **changes})  # type: ignore[arg-type]


def verdicts(images: int = 7) -> list[Verdict]:
    """Image 0 has nine questions, the others one or two; two attributes."""
    held = [0] * 9 + [1 + at % (images - 1) for at in range(2 * (images - 1) - 2)]
    rng = np.random.default_rng(3)
    return [verdict(at, one, "xy"[at % 2], bool(rng.random() < 0.6)) for at, one in enumerate(held)]


def mean_over(rows: Sequence[Verdict], places: list[int], value: Callable[[Verdict], float]) -> float:
    groups: dict[str, list[float]] = {}
    for at in places:
        groups.setdefault(rows[at].attribute, []).append(value(rows[at]))
    return float(np.mean([np.mean(one) for one in groups.values()]))


def test_an_interval_is_the_quantiles_of_draws_of_images_with_1_and_with_9_questions() -> None:
    rows = verdicts()
    values, images = [float(one.correct) for one in rows], [one.images for one in rows]
    expected = by_hand(images, lambda places: float(np.mean([values[at] for at in places])), 230, 5)
    assert bootstrap_interval(values, [""] * len(rows), images, macro, resamples=230, seed=5) == pytest.approx(expected)
    apart = bootstrap_interval(values, [""] * len(rows), range(len(rows)), macro, resamples=230, seed=5)
    assert apart != pytest.approx(expected, abs=0.02), "questions are no images"


def test_the_draws_are_as_many_as_were_asked_for_and_each_takes_as_many_images_as_there_are() -> None:
    blocks = list(drawn_weights(4, 230, 0))
    assert [len(block) for block in blocks] == [100, 100, 30] and all((block.sum(1) == 4).all() for block in blocks)
    assert (next(drawn_weights(4, 50, 1)) != blocks[0][:50]).any()


def test_equal_answers_have_wilsons_interval_over_images_not_answers() -> None:
    images = [at // 4 for at in range(20)]
    wilson = binomtest(5, 5).proportion_ci(method="wilson")
    assert bootstrap_interval([1.0] * 20, ["a"] * 20, images, macro) == pytest.approx((wilson.low, wilson.high))
    zero = binomtest(0, 5).proportion_ci(method="wilson")
    assert bootstrap_interval([0.0] * 20, ["a"] * 20, images, macro) == pytest.approx((zero.low, zero.high))
    assert percentile_ends(np.ones(300), 5) == pytest.approx((wilson.low, wilson.high))
    assert percentile_ends(np.full(300, 0.5), 5) is None, "an interval without width claims certainty"
    assert percentile_ends(np.full(3, np.nan), 5) is None


def test_two_images_are_enough_and_one_is_not() -> None:
    assert bootstrap_interval([1.0, 0.0], ["a", "a"], ["x", "y"], macro, resamples=50) == (0.0, 1.0)
    assert bootstrap_interval([1.0, 1.0], ["a", "a"], ["x", "x"], macro) is None
    table = LabelTable.of("multi_class", 2, [[0], [1]], [[0], [0]])
    assert intervals({"a": table}, ["x", "x"], resamples=20) == {} and intervals({"a": table}, ["x", "y"], resamples=20)
    value, ends = f1_difference({"a": table}, {"a": table}, ["x", "x"], resamples=20)
    assert (value, ends) == (0.0, None)


def test_intervals_of_f1_and_of_its_difference_are_quantiles_by_hand() -> None:
    rng = np.random.default_rng(1)
    gold, read, other = (rng.integers(0, 3, 40) for _ in range(3))
    images = [at // 2 for at in range(40)]
    first, second = (
        LabelTable.of("multi_class", 3, gold[:, None].tolist(), one[:, None].tolist()) for one in (read, other)
    )

    def f1(places: list[int], answers: np.ndarray) -> float:
        score: float = f1_score(gold[places], answers[places], labels=[0, 1, 2], average="macro", zero_division=np.nan)
        return score

    found = intervals({"": first}, images, resamples=130, seed=2)["f1_macro"]
    assert found == pytest.approx(by_hand(images, lambda places: f1(places, read), 130, 2))
    value, ends = f1_difference({"": first}, {"": second}, images, resamples=130, seed=2)
    whole = list(range(40))
    assert value == pytest.approx(f1(whole, other) - f1(whole, read))
    assert ends == pytest.approx(by_hand(images, lambda places: f1(places, other) - f1(places, read), 130, 2))


def test_every_interval_of_a_protocol_draws_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same questions twice on the same images say nothing new: no interval may shrink."""
    monkeypatch.setattr("medtune.evaluation.metrics.RARE_IMAGES", 0)
    rows = verdicts()
    again = [verdict(100 + at, int(one.images[0].split(".")[0]), one.attribute, one.correct, gold=one.gold,
                     predicted=one.predicted, prior=one.prior) for at, one in enumerate(rows)]  # fmt: skip
    single, double = score_protocol(rows, resamples=200, seed=4), score_protocol([*rows, *again], resamples=200, seed=4)
    for name in ("accuracy_macro", "accuracy_micro", "balanced_accuracy_macro", "majority_macro", "majority_micro",
                 "unread"):  # fmt: skip
        assert double["overall"][name].interval == pytest.approx(single["overall"][name].interval), name
        assert double["overall"][name].n == 2 * single["overall"][name].n
    for attribute in "xy":
        one, two = (found["attributes"][attribute]["balanced_accuracy"] for found in (single, double))
        assert two.interval == pytest.approx(one.interval)
    images = [one.images for one in rows]
    expected = by_hand(images, lambda at: mean_over(rows, at, lambda one: one.correct), 200, 4)
    assert single["overall"]["accuracy_macro"].interval == pytest.approx(expected)
    expected = by_hand(
        [one.images for one in rows], lambda at: mean_over(rows, at, lambda one: bool(one.prior)), 200, 4
    )
    assert single["overall"]["majority_macro"].interval == pytest.approx(expected)
    values = [float(one.correct) for one in rows]
    assert macro_interval(rows, values, 200, 4) == single["overall"]["accuracy_macro"].interval


def test_balanced_accuracy_has_an_interval_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medtune.evaluation.metrics.RARE_IMAGES", 0)
    rows = verdicts()

    def balanced(places: list[int]) -> float:
        cells: dict[tuple[str, str], list[float]] = {}
        for at in places:
            cells.setdefault((rows[at].attribute, rows[at].gold), []).append(float(rows[at].correct))
        names = sorted({attribute for attribute, _ in cells})
        recalls = [[np.mean(one) for (of, _), one in cells.items() if of == attribute] for attribute in names]
        return float(np.mean([np.mean(one) for one in recalls]))

    found = score_protocol(rows, resamples=120, seed=6)["overall"]["balanced_accuracy_macro"]
    assert found.value == pytest.approx(balanced(list(range(len(rows)))))
    assert found.interval == pytest.approx(by_hand([one.images for one in rows], balanced, 120, 6))


def test_a_paired_difference_draws_the_images_and_claims_nothing_for_equal_ones() -> None:
    values, attributes = [1.0, -1.0, 0.0, 1.0, 1.0], ["x", "x", "x", "y", "y"]
    images = ["a", "b", "a", "c", "a"]
    found = paired_difference(values, attributes, images, "one minus other", 120, 9)

    def mean(places: list[int]) -> float:
        groups: dict[str, list[float]] = {}
        for at in places:
            groups.setdefault(attributes[at], []).append(values[at])
        return float(np.mean([np.mean(one) for one in groups.values()]))

    assert found.value == pytest.approx((0.0 + 1.0) / 2) and found.n == 5
    assert found.interval == pytest.approx(by_hand(images, mean, 120, 9))
    assert paired_difference([], [], [], "", 20, 0).value is None


def test_numbers_of_each_answer_and_of_a_set_draw_images_too() -> None:
    rows = [
        verdict(at, at // 3, "xy"[at % 2], True, measures={"error": float(at % 5)} if at % 4 else {})
        for at in range(18)
    ]

    def largest(held: Sequence[Verdict]) -> float | None:
        return max((one.measures["error"] for one in held if one.measures), default=None)

    def mean_square(held: Sequence[Verdict]) -> float | None:
        known = [one.measures["error"] ** 2 for one in held if one.measures]
        return float(np.mean(known)) if known else None

    told = (
        Measure("error", "mm", False, "an error"),
        Measure("largest", "mm", False, "the largest", largest),
        Measure("square", "fraction", False, "mean square", mean_square),
        Measure("area", "mm2", False, "mean square", mean_square),
    )
    found = score_measures(rows, told, resamples=110, seed=8)["overall"]
    images = [one.images for one in rows]
    known = [at for at, one in enumerate(rows) if one.measures]
    held = [rows[at] for at in known]
    expected = by_hand([rows[at].images for at in known],
                       lambda at: mean_over(held, at, lambda one: one.measures["error"]), 110, 8)  # fmt: skip
    assert found["error_macro"].interval == pytest.approx(expected) and found["error_macro"].n == len(known) == 13
    assert found["error_macro"].value == pytest.approx(
        mean_over(held, list(range(13)), lambda one: one.measures["error"])
    )

    def over_attributes(places: list[int]) -> float:
        groups: dict[str, list[Verdict]] = {}
        for at in places:
            groups.setdefault(rows[at].attribute, []).append(rows[at])
        values = [mean_square(one) for one in groups.values()]
        return float(np.mean([one for one in values if one is not None]))

    for name in ("square_macro", "area_macro"):
        assert found[name].interval == pytest.approx(by_hand(images, over_attributes, 110, 8))
    assert (
        found["error_macro"].definition == "mean over the 2 attributes of an error; interval by a bootstrap over images"
    )
    assert found["error_micro"].definition == "an error; interval by a bootstrap over images"
    assert found["square_micro"].value == pytest.approx(mean_square(rows)) and found["square_macro"].n == 18
    assert found["largest_micro"].value == 4.0 and found["largest_micro"].interval is not None
    alone = score_measures([one for one in rows if one.images == ("0.png",)], told, resamples=20)["overall"]
    assert alone["square_macro"].value is not None and alone["square_macro"].interval is None
    nothing = score_measures([verdict(0, 0, "x", True)], told, resamples=20)["overall"]
    assert nothing["error_macro"].value is None and nothing["square_macro"].value is None


def csv_row(at: int, error: float | None) -> dict[str, str]:
    """A row of ``verdicts.csv``, one image each."""
    held = {"id": str(at), "task": "t", "sample_id": str(at), "attribute": "xy"[at % 2], "images": f"{at}.png"}
    rest = {"gold": "", "predicted": "", "read": "1", "in_format": "1", "swapped": "0"}
    return {**held, **rest, "measure:error": "" if error is None else str(error)}


def test_a_difference_of_two_runs_is_the_second_less_the_first_on_the_same_draws() -> None:
    def middle(held: Sequence[Verdict]) -> float | None:
        known = [one.measures["error"] for one in held if one.measures]
        return float(np.mean(known)) if known else None

    told = (Measure("each", "mm", False, "an error"), Measure("mean", "mm", False, "mean error", middle))
    before, after = [1.0, 2.0, 4.0, 6.0], [1.5, 5.0, 5.0, 5.0]
    pairs = {0: [(csv_row(at, before[at]), csv_row(at, after[at])) for at in range(4)]}
    found = compare_measures(pairs, told, "plain", resamples=110, seed=4)
    assert found.keys() == {"mean_macro"}, "numbers of each answer are compared elsewhere"

    def change(places: list[int]) -> float:
        sides = ([[side[at] for at in places if at % 2 == part] for part in (0, 1)] for side in (after, before))
        return float(np.subtract(*(np.mean([np.mean(group) for group in groups if group]) for groups in sides)))

    # over attributes: x is 2.5 before and 3.25 after, y is 4 and 5
    assert found["mean_macro"].value == pytest.approx(change([0, 1, 2, 3])) == pytest.approx((0.75 + 1.0) / 2)
    assert found["mean_macro"].interval == pytest.approx(by_hand([f"{at}" for at in range(4)], change, 110, 4))
    assert found["mean_macro"].unit == "mm" and found["mean_macro"].n == 4
    unknown = {0: [(csv_row(at, before[at]), csv_row(at, None)) for at in range(4)]}
    for several in (unknown, {0: [(second, first) for first, second in unknown[0]]}):
        none = compare_measures(several, told, "plain", resamples=20)["mean_macro"]
        assert (none.value, none.interval) == (None, None)
