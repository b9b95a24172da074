"""The protocol flare from questions to results: every task, intervals, comparison, and what is not scored."""

import json
import math

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from medtune.cli.main import main as cli
from medtune.config import import_path
from medtune.data.sample import Message, Sample
from medtune.errors import ConfigError, DataError, MedtuneError
from medtune.evaluation.evaluation import evaluate, metric_rows, to_csv, verdict_rows
from medtune.evaluation.flare.estimates import Estimate, Part
from medtune.evaluation.flare.report_scorers import REPORT_SCORERS, ReportScorer
from medtune.evaluation.metrics import bootstrap_interval, drawn_weights, macro
from medtune.evaluation.prediction import Prediction
from medtune.evaluation.protocols.flare import Flare
from medtune.evaluation.protocols.registry import plan_queries
from medtune.evaluation.result import Metric
from medtune.recipes import evaluate as evaluate_recipe
from medtune.recipes import predict, prepare
from tests.datasets.flare.files import row, write_set
from tests.recipes.test_predict import arguments, world  # noqa: F401

CHOICE = "Which? A: benign, B: malignant"


def question(number, task, answer, dataset="S", prompt="?", images=None):
    meta = {"task": task, "dataset": dataset, "modality": "CT"} | ({} if answer is None else {"answer": answer})
    shown = images or (f"{dataset}/{number}.png",)
    return Sample(f"{dataset}/{task}/{number}", shown, (Message("user", prompt),), meta)


def scored(samples, answers, **options):
    queries = plan_queries(samples, ["flare"])
    rows = [
        Prediction(query.id, "flare", query.prompt, text, query.references, query.meta)
        for query, text in zip(queries, answers, strict=True)
    ]
    return evaluate(samples, rows, {}, name="m", protocols=["flare"], **{"resamples": 200, **options})


def overall(found):
    return found.results["protocols"]["flare"]["overall"]


def test_classification_is_pooled_and_by_data_set_and_official():
    gold = ["A", "A", "B", "A", "B", "B"]
    samples = [question(n, "classification", g, "S" if n < 3 else "T", CHOICE) for n, g in enumerate(gold)]
    answers = ["A", "The answer is B.", "B: malignant", "benign", "", "B"]
    found = scored(samples, answers)
    read = ["A", "B", "B", "A", "unread", "B"]
    numbers = overall(found)
    with pytest.warns(UserWarning):
        pooled = balanced_accuracy_score(gold, read)
    assert numbers["balanced_accuracy"]["value"] == pytest.approx(pooled)
    assert numbers["balanced_accuracy_sets"]["value"] == pytest.approx(np.mean([(1 / 2 + 1) / 2, (1 + 1 / 2) / 2]))
    assert numbers["classification_official"]["value"] == pytest.approx((1 / 3 + 1 / 3) / 2)
    assert numbers["classification_unread"]["value"] == pytest.approx(1 / 6)
    assert "rests on few images" in numbers["balanced_accuracy"]["caution"]
    sets = found.results["protocols"]["flare"]["attributes"]
    assert {name: of["main"]["value"] for name, of in sets.items()} == {
        "S/classification": pytest.approx(0.75),
        "T/classification": pytest.approx(0.75),
    }
    assert found.results["vocabulary"]["flare"]["unread"] == {"classification": {"empty": 1}}


def test_a_gold_text_of_an_option_is_its_letter():
    samples = [
        question(0, "classification", "malignant", prompt=CHOICE),
        question(1, "classification", "b", prompt=CHOICE),
    ]
    assert [verdict.correct for verdict in scored(samples, ["B", "Malignant"]).verdicts] == [True, True]


def test_a_gold_text_is_compared_with_options_whatever_their_capitals_and_marks():
    prompt = 'Which? A: *Benign Lesion*, B: "Malignant Lesion"'
    samples = [question(0, "classification", "malignant lesion", prompt=prompt)]
    (verdict,) = scored(samples, ["B"]).verdicts
    assert (verdict.correct, verdict.predicted) == (True, "B")


def test_labels_of_a_set_without_letters_are_those_of_its_answers():
    samples = [question(0, "classification", "Malignant", "CMMD"), question(1, "classification", "Benign", "CMMD")]
    found = scored(samples, ["the abnormality appears **Malignant**.", "I cannot tell"])
    assert [verdict.predicted for verdict in found.verdicts] == ["malignant", None]


def test_boxes_at_every_threshold_with_unread_answers_as_missed():
    gold = "[[0, 0, 10, 10]]"
    samples = [question(n, "detection", gold if n < 4 else "[0, 0, 10, 10]") for n in range(5)]
    answers = ["[[0, 0, 10, 10]]", "[0, 0, 10, 5]", "[{'bbox': [0, 0, 10, 3]}]", "on the left", "[0, 0, 10, 10]"]
    numbers = overall(scored(samples, answers))
    # found at 0.3: 1, 2, 3 and 5; at 0.4 and 0.5: 1, 2 and 5; above: 1 and 5. Four boxes are read, five are right.
    expected = {30: 8 / 9, 40: 6 / 9, 50: 6 / 9, 60: 4 / 9, 70: 4 / 9}
    assert {at: numbers[f"detection_f1_{at}"]["value"] for at in expected} == pytest.approx(expected)
    assert numbers["detection_unread"]["value"] == pytest.approx(0.2)
    # official: 1 is found; flat boxes are four wrong ones; the prose is left out; objects are a list of one wrong box
    assert numbers["detection_official"]["value"] == pytest.approx(2 / (2 + (4 + 1 + 4) + (1 + 1 + 4)))


def test_instances_are_found_in_their_class_and_averaged_over_classes():
    gold = json.dumps({"1": [[0, 0, 10, 10]], "2": [[20, 20, 30, 30]]})
    samples = [question(n, "instance_detection", gold) for n in range(2)]
    numbers = overall(scored(samples, [gold, '[{"label": "1", "bbox": [0, 0, 10, 10]}]']))
    assert numbers["instance_f1_50"]["value"] == pytest.approx(2 * 3 / (2 * 3 + 0 + 1))
    assert numbers["instance_class_f1_50"]["value"] == pytest.approx((1 + 2 / 3) / 2)
    assert numbers["instance_official"]["value"] == pytest.approx(4 / 6)


def test_multi_labels_are_not_split_at_commas_inside_of_a_label():
    long = "Endodontic Treatment, Restorative Treatment, and Complications"
    samples = [
        question(0, "multi_label_classification", "Dental Caries"),
        question(1, "multi_label_classification", long),
    ]
    numbers = overall(scored(samples, [f"Dental Caries; {long}", long]))
    assert numbers["multi_label_f1"]["value"] == pytest.approx(4 / 5)
    assert numbers["multi_label_example_f1"]["value"] == pytest.approx((2 / 3 + 1) / 2)
    assert numbers["multi_label_official"]["value"] == pytest.approx(2 * 4 / (2 * 4 + 3))


def test_a_label_with_commas_of_any_set_is_known_from_answers_that_use_semicolons():
    samples = [
        question(0, "multi_label_classification", "Mass, large; Nodule"),
        question(1, "multi_label_classification", "Mass, large"),
    ]
    found = scored(samples, ["Nodule, Mass, large", "Mass, large"])
    assert overall(found)["multi_label_f1"]["value"] == 1.0


def test_counts_are_scored_over_what_was_read_and_a_run_on_decides_nothing():
    samples = [question(n, "counting", "10") for n in range(4)]
    numbers = overall(scored(samples, ["12", "25" + "0" * 252, "1,000", "I cannot"]))
    assert numbers["counting_mae"]["value"] == pytest.approx((2 + 990) / 2) and numbers["counting_mae"]["n"] == 2
    assert numbers["counting_rmse"]["value"] == pytest.approx(math.sqrt((4 + 990**2) / 2))
    assert numbers["counting_mae_zero"]["value"] == pytest.approx((2 + 10 + 990 + 10) / 4)
    assert numbers["counting_unread"]["value"] == 0.5
    assert numbers["counting_official"]["value"] is None and "infinite" in numbers["counting_official"]["caution"]
    assert numbers["counting_mae"]["unit"] == "cells"


def test_a_decimal_comma_is_read_in_a_regression():
    numbers = overall(scored([question(0, "regression", "3.5"), question(1, "regression", "30")], ["3,5", "33 %"]))
    assert numbers["regression_mae"]["value"] == pytest.approx(1.5)


def test_an_interval_is_that_of_a_bootstrap_over_images():
    samples = [question(n, "counting", "0", images=(f"{n // 2}.png",), prompt=f"How many, {n}?") for n in range(12)]
    errors = [1, 5, 2, 2, 9, 0, 4, 4, 7, 1, 3, 3]
    number = overall(scored(samples, [str(error) for error in errors]))["counting_mae"]
    clusters = [(f"{n // 2}.png",) for n in range(12)]
    expected = bootstrap_interval(errors, [""] * 12, clusters, macro, resamples=200, binary=False)
    assert number["interval"] == pytest.approx(expected)


def test_an_f1_is_recomputed_from_the_sums_of_the_drawn_images():
    parts = [Part((str(n),), ("",), top, bottom) for n, (top, bottom) in enumerate([(2, 3), (0, 4), (2, 2), (4, 5)])]
    estimate = Estimate("x", "fraction", True, parts, 4)
    drawn = estimate.drawn(50, seed=3)
    counts = np.concatenate(list(drawn_weights(4, 50, 3)))
    top, bottom = (np.array([getattr(part, side) for part in parts]) for side in ("top", "bottom"))
    by_hand = [float((row * top).sum() / (row * bottom).sum()) for row in counts]
    assert drawn == pytest.approx(np.array(by_hand)) and estimate.value() == pytest.approx(8 / 14)


def test_one_image_and_no_answer_have_no_interval_and_no_number():
    one = overall(scored([question(0, "counting", "3")], ["4"]))
    assert one["counting_mae"]["value"] == 1 and one["counting_mae"]["interval"] is None
    none = overall(scored([question(0, "counting", "3")], ["x"]))
    assert none["counting_mae"]["value"] is None and none["counting_mae"]["n"] == 0
    assert Estimate("x", "error", False, [Part(("1.png",), ("",), 1.0, 1.0)], 1).drawn(10, seed=0) is None
    empty = overall(scored([question(0, "detection", "[]")], ["[]"]))
    assert empty["detection_f1_50"]["value"] is None and empty["detection_official"]["value"] == 0


def test_of_two_equal_questions_the_later_one_counts_in_the_official_number_alone():
    samples = [question(n, "counting", "10", images=("one.png",)) for n in range(2)]
    numbers = overall(scored(samples, ["10", "14"]))
    assert (numbers["counting_official"]["value"], numbers["counting_official"]["n"]) == (4, 1)
    assert (numbers["counting_mae"]["value"], numbers["counting_mae"]["n"]) == (2, 2)


def test_a_question_without_an_answer_is_asked_and_not_scored():
    samples = [question(0, "counting", None), question(1, "counting", "3")]
    found = scored(samples, ["5", "4"])
    assert overall(found)["counting_mae"]["n"] == 1
    assert found.results["vocabulary"]["flare"]["asked_not_scored"] == {"without_answer": 1}
    assert len(verdict_rows(found.verdicts)) == 1
    assert "flare" not in scored([question(0, "counting", None)], ["5"]).results["protocols"]


def test_reports_are_asked_and_named_as_not_scored_until_a_scorer_is_there(monkeypatch):
    samples = [question(0, "report_generation", "No acute process."), question(1, "counting", "3")]
    monkeypatch.setattr("medtune.evaluation.flare.report_scorers.REPORT_SCORERS", REPORT_SCORERS)
    monkeypatch.setattr("medtune.evaluation.protocols.flare.REPORT_SCORERS", {})
    found = scored(samples, ["Clear lungs.", "3"])
    assert found.results["vocabulary"]["flare"]["asked_not_scored"] == {"report_generation": 1}
    table = to_csv(verdict_rows(found.verdicts))
    assert "Clear lungs" not in table and "acute" not in table

    def words(prediction):
        return {"words": float(len(prediction.prediction.split()))}

    def mean(verdicts, resamples, seed):
        values = [verdict.measures["words"] for verdict in verdicts]
        return {"report_words": Metric(sum(values) / len(values), "words", None, len(values), None, "words")}

    monkeypatch.setattr("medtune.evaluation.protocols.flare.REPORT_SCORERS", {"words": ReportScorer(words, mean)})
    found = scored(samples, ["Clear lungs.", "3"])
    assert overall(found)["report_words"]["value"] == 2
    assert found.results["vocabulary"]["flare"]["asked_not_scored"] == {}


def test_every_number_has_n_and_a_definition_and_is_plain_json():
    samples = [question(0, "counting", "3"), question(1, "classification", "A", prompt=CHOICE)]
    found = scored(samples, ["1e400", "A"])
    json.dumps(found.results, allow_nan=False)
    rows = metric_rows(found.results)
    assert rows and all(row["definition"] and row["n"] >= 0 for row in rows)


def test_two_runs_are_compared_on_the_same_images():
    samples = [question(n, "counting", "10") for n in range(8)]
    samples += [question(n, "detection", "[[0, 0, 10, 10]]") for n in range(8)]
    right = ["[[0, 0, 10, 10]]"] * 8
    first = scored(samples, [*["12", "15", "9", "x", "10", "20", "11", "10"], *right])
    second = scored(samples, [*["11", "12", "9", "10", "10", "13", "11", "10"], *right[:4], *["none"] * 4])
    tables = [[{k: str(v) for k, v in r.items()} for r in verdict_rows(found.verdicts)] for found in (first, second)]
    pairs = {0: list(zip(*tables, strict=True))}
    found = Flare().compare(pairs, {}, "base", resamples=100, seed=0)
    assert found["counting_mae_zero"].value == pytest.approx(-(1 + 3 + 0 + 10 + 0 + 7 + 0 + 0) / 8)
    assert found["counting_mae_zero"].interval[1] < 0
    assert found["detection_f1_50"].value == pytest.approx(8 / 12 - 1)
    same = Flare().compare({0: [(a, a) for a, _ in pairs[0]]}, {}, "base", resamples=100, seed=0)
    assert {number.value for number in same.values()} == {0.0}


def test_a_question_of_another_kind_and_swapped_images_are_refused():
    with pytest.raises(DataError, match="needs meta.dataset and meta.task, one of classification"):
        plan_queries([Sample("a", ("x.png",), (Message("user", "?"),), {"task": "vqa", "dataset": "x"})], ["flare"])
    with pytest.raises(DataError, match="needs an image and a user turn"):
        plan_queries([Sample("a", (), (Message("user", "?"),), {"task": "counting", "dataset": "x"})], ["flare"])
    with pytest.raises(ConfigError, match="is not asked on swapped images"):
        plan_queries([question(0, "counting", "3")], ["flare"], swapped=["flare"])
    with pytest.raises(MedtuneError, match="meta.answer is no answer to counting"):
        scored([question(0, "counting", "three")], ["3"])


def test_a_model_gets_the_task_and_not_the_answer():
    (query,) = plan_queries([question(0, "counting", "3")], ["flare"])
    assert query.sample.meta == {"task": "counting", "dataset": "S", "modality": "CT"}
    assert [message.role for message in query.sample.messages] == ["user"]


def test_from_the_official_files_to_scores_by_the_recipes(world, tmp_path, capsys):  # noqa: F811
    root = tmp_path / "flare"
    tasks = ("counting", "detection", "classification", "regression", "report_generation")
    write_set(root, *(row(task) for task in tasks), folder="testing/Ultrasound", part="test")
    told = [f"data.root={root}", f"image_root={root}", f"output_dir={tmp_path}/prepared"]
    assert not prepare.main(["--config", "prepare/flare", *told])
    asked = [f"questions.source={tmp_path}/prepared/test.jsonl", f"questions.image_root={root}", "protocols=[flare]"]
    out = tmp_path / "run"
    assert predict.main(arguments(world, out, *asked, "swapped=[]", "questions.center_crop=1.0")) == 0
    told = [f"predictions={out}/predictions.jsonl", f"prepared_dir={tmp_path}/prepared", f"output={out}"]
    assert not evaluate_recipe.main(["--config", "evaluate/flare", *told, "bootstrap_draws=20"])
    results = json.loads((out / "results.json").read_text())
    assert results["vocabulary"]["flare"]["questions"] == dict.fromkeys(sorted(tasks), 1)
    assert results["protocols"]["flare"]["attributes"].keys() == {f"BUSI/{task}" for task in tasks}
    without = " ".join(capsys.readouterr().out.partition("Without a value: ")[2].split())
    assert "FLARE, Counting, MAE;" in without, "no answer to its only question could be read"
    told = [*told[:2], f"output={tmp_path}/again", "name=again"]
    assert not evaluate_recipe.main(["--config", "evaluate/flare", *told, "bootstrap_draws=20"])
    assert not cli(["report", str(out), str(tmp_path / "again"), "--out", str(tmp_path / "report/report.html")])
    page = (tmp_path / "report/report.html").read_text()
    assert "FLARE, Counting, MAE" in page and "BUSI/detection" in page
    differences = json.loads((tmp_path / "report/results.json").read_text())["differences"]["again"]["flare"]
    assert "counting_mae_zero" in differences and differences["detection_f1_50"]["value"] in (0, None)


def test_the_reader_can_be_named_in_a_config():
    assert import_path("medtune.datasets.flare.flare", "dataset").__name__ == "flare"
