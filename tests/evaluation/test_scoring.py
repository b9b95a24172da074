"""Points, baselines, swaps and retention of hand-made verdicts."""

from dataclasses import replace

import numpy as np
import pytest

from medtune.data.labels import Target
from medtune.evaluation.baselines import chance, majority
from medtune.evaluation.confusion import confusion
from medtune.evaluation.evaluation import evaluate, metric_rows, verdict_rows
from medtune.evaluation.paired import mcnemar
from medtune.evaluation.protocols.base import Verdict
from medtune.evaluation.protocols.registry import plan_queries
from medtune.evaluation.protocols.response_likelihood import LikelihoodVerdict, Pairs, ranking_points, score_ranking
from medtune.evaluation.retention import retention
from medtune.evaluation.scoring import paired_difference, score_protocol
from medtune.evaluation.swapped import contrast_images, swap_images
from tests.evaluation.classes import BREAST, RETINA, answered, class_question
from tests.evaluation.tools import question


def verdict(name: str, attribute: str = "size", gold: str = "a", predicted: str | None = "a", **changes) -> Verdict:
    fields = {"in_format": predicted is not None, "swapped": False, "chance": 0.25, "prior": False}
    fields |= {"task": "open", "sample_id": name, "images": (f"{name}.png",)} | changes
    return Verdict(id=f"{name}/{fields['task']}/{fields['swapped']}", attribute=attribute, gold=gold,
                   predicted=predicted, **fields)  # fmt: skip


def test_swapped_answers_are_scored_apart_and_the_drop_is_true_minus_swapped():
    true = [verdict("1"), verdict("2"), verdict("3", predicted="b"), verdict("4", "type"), verdict("5", "type")]
    swapped = [
        verdict("1", predicted="b", swapped=True, shown_differs=True, images=("2.png",)),
        verdict("2", swapped=True, images=("1.png",)),
        verdict("4", "type", predicted=None, swapped=True, shown_differs=True, images=("5.png",)),
        verdict("9", "type", swapped=True, shown_differs=True, images=("5.png",)),
    ]
    found = score_protocol([*true, *swapped], resamples=20)
    assert found["overall"]["accuracy_micro"].value == pytest.approx(4 / 5)
    assert found["overall"]["accuracy_macro"].value == pytest.approx((2 / 3 + 1) / 2)
    assert found["attributes"]["size"]["accuracy"].n == 3
    drop = found["swapped"]["drop_macro"]
    # size: (1 - 0 + 1 - 1) / 2; type: 1 - 0; the question that was asked swapped alone makes no pair
    assert drop.value == pytest.approx((0.5 + 1.0) / 2) and drop.n == 3
    assert found["swapped"]["accuracy_micro"].value == pytest.approx(2 / 4)
    assert found["swapped"]["answer_differs"].value == pytest.approx(3 / 4)
    assert score_protocol(true, resamples=20)["swapped"] is None


def test_a_drop_draws_the_images_of_the_questions_not_the_shown_ones():
    images = [f"{place}.png" for place in range(6)]
    true = [verdict(str(place), predicted="a" if place < 4 else "b", images=(images[place],)) for place in range(6)]
    swapped = [verdict(str(place), predicted="b" if place < 3 else "a", swapped=True, images=("0.png",))
               for place in range(6)]  # fmt: skip
    drop = score_protocol([*true, *swapped], resamples=200)["swapped"]["drop_macro"]
    gains = [1.0, 1.0, 1.0, 0.0, -1.0, -1.0]
    assert drop.interval == paired_difference(gains, [""] * 6, [(one,) for one in images], "", 200, 0).interval
    assert drop.interval is not None, "the shown images are one cluster, the questions' own are six"


def test_unread_answers_count_as_wrong_and_fewer_are_better():
    found = score_protocol([verdict("1", predicted=None), verdict("2")], resamples=10)["overall"]
    assert found["unread"].value == 0.5 and found["unread"].higher_is_better is False
    assert found["accuracy_micro"].value == 0.5 and found["accuracy_micro"].higher_is_better is True
    assert not replace(verdict("1", predicted=None), gold=None).correct, "nothing read is never right"


def test_baselines_of_one_question_of_none_and_of_an_unknown_split():
    assert chance([verdict("1")]).value == 0.25 and chance([]).value is None
    assert chance([verdict("1"), verdict("2", chance=0.5)]).value == pytest.approx(0.375)
    known = majority([verdict("1", prior=True), verdict("2", prior=False)])
    assert (known.value, known.n, known.higher_is_better) == (0.5, 2, None)
    unknown = [verdict("1", prior=True), verdict("2", "type", prior=None)]
    assert majority(unknown).value is None
    assert score_protocol(unknown, resamples=5)["overall"]["majority_macro"].value == 1.0, "an unknown one is left out"


def test_a_paired_difference_is_the_mean_over_attributes():
    found = paired_difference([1.0, 1.0, 1.0, 0.0], ["x", "x", "x", "y"], list("abcd"), "", 20, 0)
    assert found.value == pytest.approx(0.5)


def test_retention_is_the_mean_of_the_components_that_were_asked_on_true_images():
    held = [
        verdict("1", task="open"),
        verdict("2", task="open", predicted=None),
        verdict("3", task="yes_no"),
        verdict("4", task="yes_no", swapped=True, predicted=None),
        verdict("5", task="letter_likelihood", predicted=None),
    ]
    found = retention(held, resamples=50)
    assert list(found) == ["open", "yes_no", "composite"]
    assert found["composite"].value == pytest.approx((0.5 + 1.0) / 2) and found["composite"].n == 3
    many = [verdict(f"o{at}", task="open", predicted="a" if at % 4 else None) for at in range(40)]
    few = [verdict(f"y{at}", task="yes_no", images=(f"o{at}.png",)) for at in range(10)]
    low, high = retention([*many, *few], resamples=300)["composite"].interval
    assert low > 0.77 and high > 0.9, "components weigh alike, in every draw too"
    assert list(retention(held, resamples=5, components={"letter_likelihood": "x"})) == [
        "letter_likelihood",
        "composite",
    ]


def test_a_confusion_table_has_a_column_for_a_value_that_is_never_right():
    found = confusion(["a", "a", "b"], ["c", None, "b"])
    assert found.answered == ("a", "b", "c") and found.gold == ("a", "b")
    assert found.counts == ((0, 0, 1), (0, 1, 0)) and found.unread == (1, 0)


def test_mcnemar_is_two_sided_and_tells_the_models_apart():
    found = mcnemar([True] * 5 + [False], [False] * 5 + [True])
    assert (found.only_first, found.only_second) == (5, 1)
    assert found.p_value == pytest.approx(2 * (1 + 6) / 64)
    assert mcnemar([False] * 5 + [True], [True] * 5 + [False]).p_value == pytest.approx(found.p_value)


def test_rows_of_the_files_say_where_a_number_stands_and_what_was_read():
    held = [
        verdict("1", predicted=None, in_format=True),
        LikelihoodVerdict("2", "r", "2", "x", (), "a", None, True, False),
    ]
    (row,) = verdict_rows(held)
    assert (row["read"], row["in_format"], row["predicted"], row["correct"]) == (0, 1, "", 0)
    number = {"value": 1.0, "unit": "x", "higher_is_better": True, "n": 1, "interval": None, "definition": "d"}
    tree = {"p": {"overall": {"m": number}, "attributes": {"size": {"m": number}}, "swapped": {"deep": {"m": number}}}}
    rows = metric_rows({"name": "x", "protocols": tree, "retention": {"composite": number}})
    places = [(one["protocol"], one["group"], one["attribute"], one["metric"]) for one in rows]
    assert places == [("p", "overall", "", "m"), ("p", "attributes", "size", "m"), ("p", "swapped", "deep", "m"),
                      ("", "retention", "", "composite")]  # fmt: skip


def test_a_limit_takes_the_first_questions_and_the_whole_files_vocabulary():
    samples = [
        question(f"q{at}", "cell size" if at < 2 else "type", ["big", "small"], "big", f"{at}.png") for at in range(4)
    ]
    rows = [answered(query, "big") for query in plan_queries(samples[:2], ["open"])]
    told = {"name": "x", "protocols": ["open"], "limit": 2, "resamples": 5}
    results = evaluate(samples, rows, {"cell size": "big", "type": "big"}, **told).results
    assert results["counts"]["questions"] == 2 and results["vocabulary"]["attributes"] == ["cell size", "type"]


def test_classification_verdicts_and_baselines_of_several_sets_and_labels():
    several = [
        class_question(Target("chest", "multi_label", ("x", "y"), one), at) for at, one in enumerate([(0,), (1,)])
    ]
    sets = [class_question(Target("breast", "multi_class", BREAST, (at % 2,)), at) for at in range(3)]
    sets += [class_question(Target("retina", "ordinal", RETINA, (at,)), at) for at in range(2)] + several
    rows = [answered(query) for query in plan_queries(sets, ["classification"])]
    told = {"name": "x", "protocols": ["classification"], "resamples": 10}
    done = evaluate(sets, rows, {"breast": "malignant"}, **told)
    overall = done.results["protocols"]["classification"]["overall"]
    assert overall["chance_macro"]["value"] == pytest.approx((1 / 2 + 1 / 4 + 1 / 3) / 3)
    assert overall["chance_micro"]["value"] == pytest.approx((3 / 2 + 2 / 4 + 2 / 3) / 7)
    for name in ("majority_macro", "majority_micro", "majority_f1_macro"):
        assert overall[name]["value"] is None, "a set without a training split has no majority, nor has the mean"
    sets_of = done.results["protocols"]["classification"]["attributes"]
    assert sets_of["breast"]["majority"]["value"] == pytest.approx(2 / 3) and sets_of["retina"]["majority"]["n"] == 0
    assert "exact match" in sets_of["chest"]["accuracy"]["definition"]
    assert "exact match" not in sets_of["breast"]["accuracy"]["definition"]
    for query in plan_queries(sets, ["classification"]):
        assert set(query.sample.meta) == {"set", "classes"}, "the model is not told the answer"


def ranked(name: str, own: float, other: float) -> list[LikelihoodVerdict]:
    fields = {"task": "r", "sample_id": name, "attribute": "s", "gold": "a", "predicted": None, "in_format": False}
    return [
        LikelihoodVerdict(
            f"{name}{swapped}", images=(f"{name}{swapped}",), swapped=swapped, log_likelihood=value, **fields
        )
        for swapped, value in ((False, own), (True, other))
    ]


def test_ranking_pairs_own_with_other_and_a_tie_is_not_above():
    held = [*ranked("1", -1.0, -2.0), *ranked("2", -1.0, -1.0), *ranked("3", -3.0, -1.0)]
    found = score_ranking(held, resamples=30)["overall"]
    assert found["own_above_other_macro"].value == pytest.approx(1 / 3)
    assert found["margin_macro"].value == pytest.approx((1 + 0 - 2) / 3)
    better = {name: number.higher_is_better for name, number in found.items()}
    assert better == {"auc_macro": True, "own_above_other_macro": True, "margin_macro": True, "overlap_macro": False,
                      "probability_own_macro": True, "probability_other_macro": False}  # fmt: skip
    assert found["overlap_macro"].interval is None and "bootstrap" not in found["overlap_macro"].definition
    pairs = Pairs(np.asarray([-1.0, -2.0]), np.asarray([-1.0, -3.0]), (("a",), ("b",)))
    assert ranking_points(pairs)["own_above_other"] == 0.5


def test_the_partner_of_a_question_whose_deal_gave_its_own_image_has_another_answer_where_one_does():
    # Two questions share each image of the first three, so that the deal gives some their own image back.
    answers = ["big", "big", "big", "big", "big", "small", "small"]
    places = [0, 0, 1, 1, 2, 2, 3]
    for seed in range(12):
        samples = [question(f"q{at}", "size", ["big", "small"], one, f"{image}.png")
                   for at, (one, image) in enumerate(zip(answers, places, strict=True))]  # fmt: skip
        dealt = swap_images(samples, seed)
        assert all(new.images != old.images for new, old in zip(dealt, samples, strict=True))
        differ = sum(new.meta["shown_answer"] != new.meta["answer"] for new in dealt)
        assert differ >= 4, "as many as can be: two small ones are shown, and shown to, the other answer"


def test_a_lone_image_is_shown_another_attributes_and_no_answer_of_that():
    samples = [
        question("a", "size", ["big", "small"], "big", "0.png"),
        question("b", "type", ["big", "x"], "x", "1.png"),
    ]
    for new, old in zip(swap_images(samples), samples, strict=True):
        assert new.images != old.images and new.meta["shown_answer"] is None


def test_a_contrast_is_drawn_evenly_over_images_of_other_answers():
    samples = [question("own", "size", ["a", "b", "c"], "a", "own.png")]
    samples += [question(f"b{at}", "size", ["a", "b", "c"], "b", f"b{at}.png") for at in range(9)]
    samples += [question("c", "size", ["a", "b", "c"], "c", "c.png")]
    shown = [contrast_images(samples, seed)[0] for seed in range(200)]
    assert all(one.meta["shown_answer"] != "a" for one in shown)
    rare = sum(one.meta["shown_answer"] == "c" for one in shown)
    assert 8 <= rare <= 36, "one image in ten, not one answer in two"
