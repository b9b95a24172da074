import dataclasses
import json

import pytest
from sklearn.metrics import accuracy_score, cohen_kappa_score, f1_score

from medtune.errors import ConfigError, DataError
from medtune.evaluation.evaluation import evaluate, metric_rows, to_csv, verdict_rows
from medtune.evaluation.prediction import Prediction
from medtune.evaluation.protocols.base import Vocabulary, question_meta
from medtune.evaluation.protocols.registry import PROTOCOLS, build_protocol, plan_queries
from medtune.evaluation.swapped import swap_images
from tests.evaluation.classes import BREAST, CHEST, MAJORITY, RETINA, answered, class_questions


@pytest.fixture
def questions():
    return class_questions()


def score(questions, texts=(), scores=None, majority=MAJORITY, swapped=(), **options):
    """Evaluate right answers, or ``texts`` for the first questions."""
    queries = plan_queries(questions, ["classification"], swapped=swapped)
    rows = [answered(query, text) for query, text in zip(queries, texts, strict=False)]
    rows += [answered(query) for query in queries[len(rows) :]]
    if scores is not None:
        rows = [dataclasses.replace(row, meta={**row.meta, "scores": scores(row)}) for row in rows]
    return evaluate(
        questions, rows, majority, name="x", protocols=["classification"], swapped=swapped, resamples=50, **options
    )


def test_the_samples_own_turn_is_the_prompt(questions):
    query = plan_queries(questions, ["classification"])[6]
    assert (query.id, query.task) == ("chest/test/0/classification", "classification")
    assert query.prompt == "Analyze the given chest image." and query.references == ("effusion", "mass")
    assert query.sample.images == ("chest/test/0.png",) and query.continuations == ()
    assert query.meta == {
        "sample_id": "chest/test/0", "attribute": "chest", "answer": "effusion; mass", "images": ["chest/test/0.png"],
        "swapped": False, "set": "chest", "task": "multi_label", "classes": list(CHEST), "label": ["effusion", "mass"],
        "label_index": [0, 1], "protocol": "classification",
    }  # fmt: skip
    assert plan_queries(questions, ["classification"])[7].references == ("no finding",)


def test_it_is_not_asked_unless_it_is_named(questions):
    assert "classification" not in PROTOCOLS
    with pytest.raises(ConfigError, match="choose from .*classification"):
        build_protocol("clasification")


def test_verdicts(questions):
    protocol = build_protocol("classification")
    vocabulary = Vocabulary.of(questions, MAJORITY)
    queries = plan_queries(questions, ["classification"])

    def judge(place, text):
        return protocol.judge(answered(queries[place], text), vocabulary)

    right = judge(0, "MALIGNANT.")
    assert (right.correct, right.predicted, right.in_format, right.chance, right.prior) == (
        True, "malignant", True, 0.5, False,
    )  # fmt: skip
    stray = judge(0, "a tumour")
    assert (stray.correct, stray.predicted, stray.in_format, stray.out_of_vocabulary) == (False, None, False, True)
    assert judge(6, "mass, effusion").correct and judge(6, "mass, effusion").gold == "effusion; mass"
    part = judge(9, "mass; a cyst")
    assert (part.correct, part.predicted, part.read_indices, part.out_of_vocabulary) == (False, "mass; ?", (1,), True)
    assert judge(7, "no finding").correct and judge(7, "no finding").chance == 1 / 8 and judge(7, "").predicted is None


def test_numbers_of_each_set_are_scikit_learns(questions):
    texts = ["malignant", "malignant", "normal benign", "Normal, benign", "unclear", "normal, benign"]
    texts += ["effusion", "no finding", "mass", "mass; cyst", "none", "mild", "mild", "severe", "blank"]
    results = score(questions, texts).results["protocols"]["classification"]
    breast, chest, retina = (results["attributes"][name] for name in ("breast", "chest", "retina"))

    gold, read = [0, 1, 1, 1, 0, 1], [0, 0, 1, 1, 9, 1]
    assert breast["accuracy"]["value"] == pytest.approx(accuracy_score(gold, read)) == pytest.approx(4 / 6)
    expected = f1_score(gold, read, labels=[0, 1], average="macro")
    assert breast["f1_macro"]["value"] == pytest.approx(expected) == pytest.approx((2 / 4 + 6 / 7) / 2)
    assert breast["out_of_vocabulary"]["value"] == pytest.approx(1 / 6)
    assert breast["chance"]["value"] == 0.5 and breast["majority"]["value"] == pytest.approx(4 / 6)
    assert breast["majority_f1"]["value"] == pytest.approx((0 + 8 / 10) / 2)

    assert chest["accuracy"]["value"] == pytest.approx(1 / 4), "exact match: the answer with a stray part is wrong"
    assert chest["label_accuracy"]["value"] == pytest.approx(10 / 12)
    # effusion: tp 1; mass: tp 1 (of the partly stray answer), fp 1, fn 1; hernia neither occurs nor is answered.
    assert chest["f1_macro"]["value"] == pytest.approx((1 + 2 / 4) / 2)
    assert "exact match" in chest["accuracy"]["definition"]
    assert chest["majority"]["value"] == pytest.approx(2 / 4) and chest["majority_f1"]["value"] == 0.0

    kappa = cohen_kappa_score([0, 1, 2, 0, 2], [0, 1, 1, 2, 0], weights="quadratic", labels=[0, 1, 2])
    assert retina["quadratic_kappa"]["value"] == pytest.approx(kappa)
    assert set(retina) - set(breast) == {"quadratic_kappa"}
    assert set(chest) - set(breast) == {"label_accuracy", "label_accuracy_strict"}

    overall = results["overall"]
    for metric, name in (("accuracy_macro", "accuracy"), ("f1_macro", "f1_macro"), ("majority_macro", "majority")):
        values = [one[name]["value"] for one in (breast, chest, retina)]
        assert overall[metric]["value"] == pytest.approx(sum(values) / 3)
    assert overall["accuracy_micro"]["value"] == pytest.approx((4 + 1 + 2) / 15)
    assert overall["out_of_vocabulary"]["value"] == pytest.approx(3 / 15)
    assert overall["chance_macro"]["value"] == pytest.approx((1 / 2 + 1 / 8 + 1 / 3) / 3)
    assert all(overall[name]["interval"] for name in ("accuracy_macro", "majority_macro"))
    assert overall["f1_macro"]["interval"] is None, "classes of two images: see the caution"


def test_a_perfect_model_scores_one_everywhere(questions, monkeypatch):
    monkeypatch.setattr("medtune.evaluation.metrics.RARE_IMAGES", 0)
    done = score(questions, scores=lambda row: [float(name in row.prediction) for name in row.meta["classes"]])
    for numbers in done.results["protocols"]["classification"]["attributes"].values():
        for name in ("accuracy", "f1_macro", "label_accuracy", "quadratic_kappa", "auc_macro"):
            assert numbers.get(name, {"value": 1.0})["value"] == 1.0
        assert numbers["f1_macro"]["interval"][0] < 1.0, "no certainty is claimed"
    assert done.results["retention"] == {}
    assert done.results["vocabulary"]["sets"]["retina"] == {"task": "ordinal", "classes": list(RETINA)}


def test_scores_give_an_area_under_the_curve(questions):
    done = score(questions, scores=lambda row: [1.0 - place for place in range(len(row.meta["classes"]))])
    assert done.results["protocols"]["classification"]["attributes"]["breast"]["auc_macro"]["value"] == 0.5
    queries = plan_queries(questions, ["classification"])
    some = [answered(query, scores=[0.0, 1.0] if query.id == queries[0].id else None) for query in queries]
    done = evaluate(questions, some, MAJORITY, name="x", protocols=["classification"], resamples=50)
    assert "auc_macro" not in done.results["protocols"]["classification"]["attributes"]["breast"], (
        "not all rows have some"
    )


@pytest.mark.parametrize("scores", [[1.0], [1.0, float("nan")], "ab", [True, False], [1.0, 2.0, 3.0]])
def test_scores_that_cannot_be_used_are_named(questions, scores):
    with pytest.raises(DataError, match=r"'breast/test/0/classification': meta.scores must hold 2 finite numbers"):
        score(questions[:6], scores=lambda row: scores)


def test_swapping_costs_the_model_that_looks(questions):
    queries = plan_queries(questions, ["classification"], swapped=["classification"])
    assert queries[15].id == "breast/test/0/classification/swapped"
    looks = [answered(query, query.meta.get("shown_answer")) for query in queries]
    done = evaluate(
        questions, looks, MAJORITY, name="x", protocols=["classification"], swapped=["classification"], resamples=50
    )
    swapped = done.results["protocols"]["classification"]["swapped"]
    assert swapped["drop_macro"]["value"] == pytest.approx(1 - swapped["accuracy_macro"]["value"])
    assert swapped["drop_macro"]["value"] > 0.5
    assert swapped["f1_macro"]["value"] < 0.5
    for sample, other in zip(questions, swap_images(questions), strict=True):
        assert other.images != sample.images and other.images[0].split("/")[0] == sample.meta["set"]


def test_a_set_without_a_training_split_has_no_majority(questions):
    overall = score(questions, majority={"breast": "malignant"}).results["protocols"]["classification"]
    assert overall["overall"]["majority_macro"]["value"] is None
    assert overall["overall"]["majority_f1_macro"]["value"] is None
    assert overall["attributes"]["retina"]["majority"]["value"] is None
    assert overall["attributes"]["breast"]["majority"]["value"] == pytest.approx(2 / 6)
    rows = [answered(query) for query in plan_queries(questions[:6], ["open"])]
    with pytest.raises(DataError, match="lack the attribute 'breast'"):
        evaluate(questions[:6], rows, {}, name="x", protocols=["open"])


def test_missing_answers_are_out_of_vocabulary(questions):
    done = evaluate(questions, [], MAJORITY, name="x", protocols=["classification"], on_missing="wrong", resamples=50)
    overall = done.results["protocols"]["classification"]["overall"]
    assert overall["accuracy_macro"]["value"] == overall["f1_macro"]["value"] == 0.0
    assert overall["out_of_vocabulary"]["value"] == 1.0


def test_a_classifiers_row_needs_no_more_than_the_format_says(questions):
    rows = [
        Prediction(f"{one.id}/classification", "classification", "", answered(query).prediction, query.references,
                   {"set": one.meta["set"], "classes": one.meta["classes"], "label": one.meta["label"],
                    "scores": [0.1] * len(one.meta["classes"])})
        for one, query in zip(questions, plan_queries(questions, ["classification"]), strict=True)
    ]  # fmt: skip
    done = evaluate(questions, rows, MAJORITY, name="x", protocols=["classification"], resamples=50)
    assert done.results["protocols"]["classification"]["overall"]["accuracy_macro"]["value"] == 1.0
    other = dataclasses.replace(rows[0], meta={**rows[0].meta, "classes": BREAST[::-1]})
    with pytest.raises(DataError, match="disagree on its classes"):
        evaluate(questions, [other, *rows[1:]], MAJORITY, name="x", protocols=["classification"])


def test_questions_that_are_none(questions):
    bare = dataclasses.replace(questions[0], meta={"attribute": "size", "options": ["a", "b"], "answer": "a"})
    with pytest.raises(DataError, match="'breast/test/0' is no classification question"):
        plan_queries([bare], ["classification"])
    with pytest.raises(DataError, match="needs an image and a user turn"):
        plan_queries([dataclasses.replace(questions[0], images=())], ["classification"])
    with pytest.raises(DataError, match="needs an image and a user turn"):
        plan_queries([dataclasses.replace(questions[0], messages=questions[0].messages[1:])], ["classification"])
    changed = dataclasses.replace(questions[1], meta={**questions[1].meta, "classes": [*BREAST, "cyst"]})
    with pytest.raises(DataError, match="'breast' have different classes"):
        score([questions[0], changed])


def test_questions_with_one_right_class_can_be_asked_otherwise(questions):
    (query,) = build_protocol("multiple_choice").plan(questions[0])
    assert query.prompt.startswith("Analyze the given breast image.\nA. malignant\nB. normal, benign\n")
    assert question_meta(questions[0])["options"] == list(BREAST)
    with pytest.raises(DataError, match="'chest/test/0': a multi-label question has no single answer"):
        build_protocol("multiple_choice").plan(questions[6])


def test_results_are_plain_json_and_every_number_says_what_it_is(questions):
    done = score(questions, swapped=["classification"])
    json.dumps(done.results, allow_nan=False)
    rows = metric_rows(done.results)
    assert {row["attribute"] for row in rows} == {"", "breast", "chest", "retina"}
    assert all(row["definition"] and row["n"] for row in rows if row["value"] is not None)
    secret = score(questions, ["SECRET"] * 15)
    assert "SECRET" not in to_csv(verdict_rows(secret.verdicts)) + json.dumps(secret.results)


def test_the_difference_in_macro_f1_is_the_second_less_the_first() -> None:
    """The first misses one ``a``: F1 of a is 2/3, of b 4/5; the second is right throughout."""

    def row(image: str, gold: str, predicted: str) -> dict[str, str]:
        return {"attribute": "cells", "images": image, "gold": gold, "predicted": predicted}

    answers = [("1", "a", "a"), ("2", "a", "b"), ("3", "b", "b"), ("4", "b", "b")]
    pairs = {0: [(row(at, gold, first), row(at, gold, gold)) for at, gold, first in answers]}
    sets = {"sets": {"cells": {"task": "multi_class", "classes": ["a", "b"]}}}
    found = build_protocol("classification").compare(pairs, sets, "plain", resamples=40, seed=0)
    assert found.keys() == {"f1_macro"} and found["f1_macro"].n == 4
    assert found["f1_macro"].value == pytest.approx(1.0 - (2 / 3 + 4 / 5) / 2)
    assert "minus that of plain" in found["f1_macro"].definition
