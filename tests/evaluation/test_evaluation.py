import csv
import io
import json

import pytest

from medtune.errors import DataError
from medtune.evaluation.baselines import read_majority
from medtune.evaluation.evaluation import evaluate, metric_rows, to_csv, verdict_rows
from medtune.evaluation.protocols.registry import PROTOCOLS, plan_queries
from medtune.evaluation.result import Metric, is_metric

SWAPPED = ["open", "multiple_choice"]


@pytest.fixture
def perfect(questions, majority, answer):
    rows = [answer(query) for query in plan_queries(questions, PROTOCOLS, swapped=SWAPPED)]
    return evaluate(questions, rows, majority, name="perfect", swapped=SWAPPED, resamples=50)


def test_a_perfect_model(perfect):
    for name, protocol in perfect.results["protocols"].items():
        assert name != "description"
        assert protocol["overall"]["accuracy_macro"]["value"] == 1.0
        assert protocol["overall"]["balanced_accuracy_macro"]["value"] == 1.0
        assert protocol["overall"]["unread"]["value"] == 0.0
        assert protocol["overall"]["accuracy_macro"]["interval"][0] < 1.0
    assert perfect.results["retention"]["composite"]["value"] == 1.0
    assert set(perfect.results["retention"]) == {"multiple_choice", "open", "yes_no", "description", "composite"}


def test_baselines_stand_beside(perfect):
    overall = perfect.results["protocols"]["open"]["overall"]
    assert overall["chance_macro"]["value"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert overall["chance_micro"]["value"] == pytest.approx((4 / 2 + 4 / 3) / 8)
    assert overall["majority_macro"]["value"] == pytest.approx((3 / 4 + 1 / 4) / 2)
    assert overall["majority_micro"]["value"] == pytest.approx(4 / 8)
    assert perfect.results["protocols"]["yes_no"]["overall"]["chance_macro"]["value"] == 0.5


def test_macro_and_micro_differ_where_attributes_differ_in_size(questions, majority, answer):
    some = questions[:4] + questions[4:5]
    rows = [answer(query, None if query.id.startswith("s") else "pink") for query in plan_queries(some, ["open"])]
    overall = evaluate(some, rows, majority, name="x", protocols=["open"], resamples=50).results["protocols"]["open"][
        "overall"
    ]
    assert overall["accuracy_macro"]["value"] == pytest.approx(0.5)
    assert overall["accuracy_micro"]["value"] == pytest.approx(0.8)
    assert overall["unread"]["value"] == pytest.approx(0.2)


def test_one_value_for_all_is_seen_by_balanced_accuracy(questions, majority, answer):
    rows = [answer(query, "big") for query in plan_queries(questions[:4], ["open"])]
    numbers = evaluate(questions[:4], rows, majority, name="x", protocols=["open"], resamples=50).results
    attribute = numbers["protocols"]["open"]["attributes"]["cell size"]
    assert attribute["accuracy"]["value"] == 0.75
    assert attribute["balanced_accuracy"]["value"] == 0.5


def test_swapping_costs_the_model_that_looks_and_not_the_one_that_does_not(questions, majority, answer):
    queries = plan_queries(questions, ["open"], swapped=["open"])
    looks = [answer(query, query.meta.get("shown_answer")) for query in queries]
    habit = [answer(query, majority[query.meta["attribute"]]) for query in queries]
    costs = []
    for rows in (looks, habit):
        result = evaluate(
            questions, rows, majority, name="x", protocols=["open"], swapped=["open"], resamples=50
        ).results
        costs.append(result["protocols"]["open"]["swapped"])
    assert costs[0]["drop_macro"]["value"] == pytest.approx((0.5 + 1.0) / 2)
    assert costs[0]["answer_differs"]["value"] == pytest.approx(6 / 8)
    assert costs[1]["drop_macro"]["value"] == 0.0


def test_a_reciting_model_loses_retention_not_letters(questions, majority, answer):
    report = "big cell size, coarse granule type"
    queries = plan_queries(questions)
    rows = [answer(query) if query.continuations else answer(query, report) for query in queries]
    results = evaluate(questions, rows, majority, name="x", resamples=50).results
    assert results["retention"]["composite"]["value"] == 0.0
    assert results["protocols"]["letter_likelihood"]["overall"]["accuracy_macro"]["value"] == 1.0
    assert results["protocols"]["multiple_choice"]["overall"]["unread"]["value"] == 1.0


def test_missing_answers_count_as_wrong_in_every_protocol(questions, majority):
    results = evaluate(questions, [], majority, name="x", on_missing="wrong", resamples=50).results
    assert all(one["overall"]["accuracy_macro"]["value"] == 0.0 for one in results["protocols"].values())
    assert results["retention"]["composite"]["value"] == 0.0
    assert results["counts"]["missing"] == results["counts"]["asked"] == 36


def test_limit_takes_the_first_questions(questions, majority, answer):
    rows = [answer(query) for query in plan_queries(questions[:3], ["open"])]
    results = evaluate(questions, rows, majority, name="x", protocols=["open"], limit=3, resamples=50).results
    assert results["counts"]["questions"] == 3
    assert results["vocabulary"]["attributes"] == ["cell size", "granule type"]


def test_the_order_of_predictions_does_not_matter_and_json_takes_all(perfect, questions, majority, answer):
    rows = [answer(query) for query in plan_queries(questions, PROTOCOLS, swapped=SWAPPED)]
    again = evaluate(questions, rows[::-1], majority, name="perfect", swapped=SWAPPED, resamples=50)
    assert json.dumps(again.results, allow_nan=False) == json.dumps(perfect.results, allow_nan=False)


def test_every_number_says_what_it_is(perfect):
    rows = metric_rows(perfect.results)
    assert {row["metric"] for row in rows} >= {"accuracy", "accuracy_macro", "chance_macro", "drop_macro", "composite"}
    assert all(row["definition"] and row["unit"] and row["n"] > 0 for row in rows)
    parsed = list(csv.DictReader(io.StringIO(to_csv(rows))))
    assert len(parsed) == len(rows)
    assert {row["attribute"] for row in parsed} == {"", "cell size", "granule type"}


def test_verdict_rows_hold_no_answer_text(questions, majority, answer):
    rows = [answer(query, "SECRET") for query in plan_queries(questions, ["open"])]
    verdicts = evaluate(questions, rows, majority, name="x", protocols=["open"], resamples=50).verdicts
    assert "SECRET" not in to_csv(verdict_rows(verdicts))


def test_number_round_trip():
    number = Metric(0.5, "fraction", True, 10, (0.2, 0.8), "share")
    assert Metric.from_dict(number.to_dict()) == number
    assert is_metric(number.to_dict()) and not is_metric({"value": 1})
    assert Metric(float("nan"), "fraction", True, 0, (0.0, 1.0), "x").to_dict()["value"] is None
    with pytest.raises(DataError, match="'n'"):
        Metric.from_dict({key: value for key, value in number.to_dict().items() if key != "n"})


@pytest.mark.parametrize("text", [None, "{", "[]", '{"cell size": 3}'])
def test_majority_values_that_cannot_be_read(tmp_path, text):
    path = tmp_path / "training_majority.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=str(path)):
        read_majority(path)
