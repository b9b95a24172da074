"""No interval claims more than its answers can show: shared images, rare classes, few questions, unread answers."""

import numpy as np
import pytest
from scipy.stats import binomtest

from medtune.data.labels import Target
from medtune.evaluation.evaluation import evaluate
from medtune.evaluation.metrics import RARE_IMAGES, few_differences, proportion, rare_classes, share
from medtune.evaluation.protocols.base import Verdict
from medtune.evaluation.protocols.registry import plan_queries
from medtune.evaluation.resampled import LabelTable, points
from medtune.evaluation.retention import retention
from medtune.evaluation.scoring import paired_difference, score_protocol
from tests.evaluation.classes import CHEST, answered, class_question


def verdict(at: int, image: int, right: bool, gold: str = "a", task: str = "open") -> Verdict:
    return Verdict(
        f"{at}/{task}",
        task,
        f"{at}",
        "size",
        (f"{image}.png",),
        gold,
        gold if right else None,
        right,
        False,
        prior=right,
    )


def correlated(rng: np.random.Generator, images: int, questions: int) -> list[bool]:
    """Answers of which those on one image are alike: 60% right on the whole."""
    skill = rng.random(images) < 0.6
    return [bool(skill[image] if rng.random() < 0.8 else rng.random() < 0.6) for image in range(images)
            for _ in range(questions)]  # fmt: skip


def test_a_share_of_questions_on_shared_images_covers_the_true_share_and_wilsons_interval_does_not():
    rng, images = np.random.default_rng(0), [image for image in range(40) for _ in range(5)]
    inside = {"own": 0, "wilson": 0}
    for seed in range(150):
        entries = correlated(rng, 40, 5)
        own = share(entries, images, "", resamples=200, seed=seed).interval
        wilson = proportion(entries, "").interval
        assert own is not None and wilson is not None
        inside["own"] += own[0] <= 0.6 <= own[1]
        inside["wilson"] += wilson[0] <= 0.6 <= wilson[1]
    assert inside["own"] / 150 > 0.9 and inside["wilson"] / 150 < 0.8


def test_one_question_on_each_image_has_wilsons_interval_and_says_so():
    number = share([True] * 7 + [False] * 3, range(10), "share of right answers")
    wilson = binomtest(7, 10).proportion_ci(method="wilson")
    assert number.interval == pytest.approx((wilson.low, wilson.high))
    assert number.definition == "share of right answers; Wilson interval"
    shared = share([True] * 7 + [False] * 3, [at // 2 for at in range(10)], "share of right answers")
    assert shared.definition == "share of right answers; interval by a bootstrap over images"
    assert (shared.value, shared.n) == (0.7, 10) and shared.interval != number.interval


def test_every_share_of_a_protocol_allows_for_shared_images():
    rng = np.random.default_rng(1)
    rows = [verdict(at, at // 6, right) for at, right in enumerate(correlated(rng, 30, 6))]
    found = score_protocol(rows, resamples=100)
    numbers = {**found["overall"], **{f"size/{name}": one for name, one in found["attributes"]["size"].items()}}
    for name in ("accuracy_micro", "unread", "majority_micro", "size/accuracy", "size/unread", "size/majority"):
        wilson = proportion([True] * round(numbers[name].value * len(rows)), "").n  # the share is that of the rows
        assert wilson == round(numbers[name].value * 180) and "bootstrap over images" in numbers[name].definition, name
        low, high = numbers[name].interval
        count = round(numbers[name].value * 180)
        narrow = binomtest(count, 180).proportion_ci(method="wilson")
        assert high - low > 1.3 * (narrow.high - narrow.low), name
    assert "bootstrap over images" in retention(rows, resamples=20)["open"].definition


def test_a_rare_value_leaves_balanced_accuracy_a_sentence_and_no_interval():
    rows = [verdict(at, at, at % 3 > 0, "rare" if at < 4 else "common") for at in range(60)]
    for numbers, name in ((score_protocol(rows)["overall"], "balanced_accuracy_macro"),
                          (score_protocol(rows)["attributes"]["size"], "balanced_accuracy")):  # fmt: skip
        assert numbers[name].interval is None and "rare (n=4)" in numbers[name].caution
        assert numbers[name].to_dict()["caution"] == numbers[name].caution
    enough = [verdict(at, at, at % 3 > 0, "rare" if at < RARE_IMAGES else "common") for at in range(60)]
    number = score_protocol(enough)["overall"]["balanced_accuracy_macro"]
    assert number.interval is not None and number.caution == "" and "caution" not in number.to_dict()


def test_a_class_is_rare_by_its_images_not_by_its_questions():
    rows = [verdict(at, at % 3, True, "rare") for at in range(40)] + [
        verdict(90 + at, 9 + at, True) for at in range(40)
    ]
    assert "rare (n=3)" in score_protocol(rows)["overall"]["balanced_accuracy_macro"].caution


def test_the_rarest_classes_are_listed_first_and_few():
    text = rare_classes({"a": 3, "b": 40, "c": 1, "d": 2, "e": 5})
    assert (
        text.startswith("rests on few images of c (n=1), d (n=2), a (n=3) and 1 more;")
        and rare_classes({"b": 40}) == ""
    )


def chest(texts: list[str]) -> dict:
    targets = [Target("chest", "multi_label", CHEST, (at % 3,)) for at in range(len(texts))]
    questions = [class_question(target, at) for at, target in enumerate(targets)]
    rows = [answered(q, text) for q, text in zip(plan_queries(questions, ["classification"]), texts, strict=True)]
    done = evaluate(questions, rows, {}, name="model", protocols=["classification"], resamples=50)
    return done.results["protocols"]["classification"]


def test_an_answer_that_cannot_be_read_is_wrong_about_every_label_in_the_strict_number():
    found = chest(["banana"] * 60)["attributes"]["chest"]
    assert found["label_accuracy"]["value"] == pytest.approx(2 / 3), "two of three labels are absent"
    assert found["label_accuracy_strict"]["value"] == 0.0 and found["unread"]["value"] == 1.0
    nothing = chest(["no finding"] * 60)["attributes"]["chest"]
    assert nothing["label_accuracy_strict"]["value"] == pytest.approx(2 / 3) and nothing["unread"]["value"] == 0.0
    half = chest(["banana", "effusion", "mass; cyst"] * 20)["attributes"]["chest"]
    assert half["unread"]["value"] == pytest.approx(1 / 3), "a partly read answer is read"
    assert half["label_accuracy_strict"]["value"] < half["label_accuracy"]["value"]


def test_the_strict_number_has_an_interval_of_its_own_resamples():
    found = chest(["banana", "effusion", "mass; cyst"] * 20)["attributes"]["chest"]["label_accuracy_strict"]
    low, high = found["interval"]
    assert low < found["value"] < high
    table = LabelTable.of("multi_label", 3, [[0], [1]], [[], []], unread=[True, False])
    assert points(table)["label_accuracy_strict"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("difference", "low", "high"), [(0.0, -0.4345, 0.4345), (1.0, 0.1311, 1.0), (-1.0, -1.0, -0.1311)]
)
def test_equal_differences_on_five_questions_have_an_interval_for_few_questions(difference, low, high):
    number = paired_difference([difference] * 5, ["x"] * 5, range(5), "", 200, 0)
    assert number.value == difference and number.interval == pytest.approx((low, high), abs=1e-4)
    assert few_differences(difference, 5) == number.interval


def test_equal_differences_narrow_with_the_number_of_images_not_of_questions():
    many = paired_difference([0.0] * 400, ["x"] * 400, range(400), "", 50, 0).interval
    few = paired_difference([0.0] * 400, ["x"] * 400, [at % 5 for at in range(400)], "", 50, 0).interval
    assert many is not None and few is not None and many[1] < 0.01 and few == pytest.approx((-0.4345, 0.4345), abs=1e-4)


def test_equal_errors_that_are_no_answers_right_or_wrong_have_no_interval():
    assert paired_difference([0.25] * 5, ["x"] * 5, range(5), "", 200, 0).interval is None
    assert paired_difference([1.0], ["x"], ["one image"], "", 200, 0).interval is None
