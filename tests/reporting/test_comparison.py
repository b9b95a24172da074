import dataclasses

import pytest
from scipy.stats import binomtest

from medtune.reporting.comparison import compare
from medtune.reporting.runs import read_run


def test_a_run_against_itself_differs_by_nothing(runs):
    run = read_run(runs[2])
    numbers = compare(run, run, resamples=50)
    assert set(numbers) == {"open", "multiple_choice", "letter_likelihood", "yes_no", "retention"}
    for number in numbers.values():
        low, high = number["interval"]
        assert number["value"] == 0.0 and low == -high < 0, "no difference on some images is no proof of none"


def test_pairing_is_narrower_than_two_intervals(runs):
    base, tuned = read_run(runs[0]), read_run(runs[2])
    half = dict(tuned.verdicts)
    for one in [one for one, row in half.items() if row["task"] == "open" and row["swapped"] == "0"][::5]:
        half[one] = {**half[one], "correct": "0"}
    worse = dataclasses.replace(tuned, verdicts=half)
    low, high = compare(tuned, worse)["open"]["interval"]
    assert high - low < 0.25 and low < 0 and high <= 0
    assert compare(base, tuned)["open"]["n"] == 84


def test_runs_without_verdicts_are_not_compared(runs):
    run = read_run(runs[0])
    assert compare(run, dataclasses.replace(run, verdicts={})) == {}


def test_the_discordant_counts_are_the_verdicts_and_the_p_value_is_the_binomial(runs):
    base, tuned = read_run(runs[0]), read_run(runs[2])
    number = compare(base, tuned, resamples=20)["open"]
    marks = [
        (base.verdicts[one]["correct"], row["correct"])
        for one, row in tuned.verdicts.items()
        if row["task"] == "open" and row["swapped"] == "0"
    ]
    test = number["mcnemar"]
    assert test["only_first"] == marks.count(("1", "0")) and test["only_second"] == marks.count(("0", "1"))
    assert test["both_right"] + test["both_wrong"] + test["only_first"] + test["only_second"] == test["n"] == 84
    discordant = test["only_first"] + test["only_second"]
    assert test["p_value"] == pytest.approx(binomtest(test["only_first"], discordant, 0.5).pvalue, abs=1e-12)
    assert number["micro"]["value"] == pytest.approx((test["only_second"] - test["only_first"]) / 84)
    low, high = number["micro"]["interval"]
    assert low < number["micro"]["value"] < high


def test_micro_and_macro_part_where_attributes_have_different_numbers_of_questions(runs):
    base = read_run(runs[0])
    few = [one for one, row in base.verdicts.items() if row["attribute"] == "label"][1:]
    kept = {one: {**row, "correct": "0"} for one, row in base.verdicts.items() if one not in few}
    turned = {one: {**row, "correct": str(int(row["attribute"] == "label"))} for one, row in kept.items()}
    number = compare(dataclasses.replace(base, verdicts=kept), dataclasses.replace(base, verdicts=turned))
    assert number["multiple_choice"]["micro"]["value"] < number["multiple_choice"]["value"] == pytest.approx(1 / 7)


def test_different_question_sets_are_not_compared_and_said(runs):
    base, tuned = read_run(runs[0]), read_run(runs[2])
    dropped = next(one for one, row in tuned.verdicts.items() if row["task"] == "open" and row["swapped"] == "0")
    fewer = {one: row for one, row in tuned.verdicts.items() if one != dropped}
    numbers = compare(base, dataclasses.replace(tuned, verdicts=fewer), resamples=20)
    assert set(numbers) == {"multiple_choice", "letter_likelihood", "yes_no", "skipped"}
    assert numbers["skipped"]["open"] == "the question sets differ: 84 and 83 questions, 83 of them in both"
    assert "'open'" in numbers["skipped"]["retention"]


def test_another_right_answer_is_no_pair(runs):
    base, tuned = read_run(runs[0]), read_run(runs[2])
    one = next(one for one, row in tuned.verdicts.items() if row["task"] == "yes_no")
    other = {**tuned.verdicts, one: {**tuned.verdicts[one], "gold": "something else"}}
    numbers = compare(base, dataclasses.replace(tuned, verdicts=other), resamples=20)
    assert "yes_no" not in numbers
    assert numbers["skipped"]["yes_no"] == "1 of 84 questions have another right answer or image"


def test_a_protocol_that_one_run_was_not_asked_is_left_out(runs):
    base, tuned = read_run(runs[0]), read_run(runs[2])
    fewer = {one: row for one, row in tuned.verdicts.items() if row["task"] != "letter_likelihood"}
    numbers = compare(base, dataclasses.replace(tuned, verdicts=fewer), resamples=20)
    assert set(numbers) == {"open", "multiple_choice", "yes_no", "retention"}
