"""The numbers of a router, on routers whose scores are known."""

import json

import numpy as np
import pytest

from medtune.datasets.task_questions.builder import QuestionSource
from medtune.datasets.task_questions.rows import Pair
from medtune.errors import ConfigError, DataError, ModelError
from medtune.recipes import evaluate_router as recipe
from medtune.recipes import tfidf_router
from medtune.reporting.routers import router_page
from medtune.routing.evaluation import asked_of, calibration, evaluate_router
from medtune.routing.gliclass_router import GLiClassRouter
from tests.routing.routed_questions import TASKS
from tests.routing.tiny_router import tiny_router, write_questions

ROWS = [
    ("count 1", "counting", "real", [0.1, 0.8, 0.1]),
    ("count 2", "counting", "real", [0.1, 0.4, 0.5]),
    ("box 1", "detection", "real", [0.0, 0.05, 0.95]),
    ("letter 1", "classification", "real", [0.45, 0.3, 0.25]),
    ("zxq", "none", "letters", [0.35, 0.33, 0.32]),
    ("hello", "none", "everyday", [0.9, 0.05, 0.05]),
    ("outline it", "segmentation", "unseen", [0.2, 0.2, 0.6]),
]


class Known:
    """A router with the scores of ROWS."""

    labels = TASKS

    def probabilities(self, questions):
        scores = {text: row for text, _, _, row in ROWS}
        return np.array([scores[text] for text in questions])

    def identity(self):
        return {"router": "known"}


class Ordered(Known):
    """A router that takes the label that it is told first, for one of its questions."""

    def ordered_probabilities(self, questions, order):
        scores = self.probabilities(questions)
        for row, text in enumerate(questions):
            if text == "box 1":
                scores[row] = [0.1, 0.1, 0.1]
                scores[row, order[0]] = 0.8
        return scores


def source(rows=ROWS):
    return QuestionSource([Pair(text, text, task, text, origin) for text, task, origin, _ in rows], "rows")


@pytest.fixture(scope="module")
def found():
    return evaluate_router(Known(), asked_of([source()], TASKS), [0.3, 0.5])


def test_accuracy_and_confusion_are_of_known_tasks_alone(found):
    assert (found["accuracy"]["value"], found["accuracy"]["n"]) == (0.75, 4)
    assert found["by_task"]["counting"]["value"] == 0.5 and found["by_task"]["counting"]["n"] == 2
    assert found["confusion"]["counts"] == [[1, 0, 0], [0, 1, 1], [0, 0, 1]]
    assert found["counts"] == {
        "classification": 1, "counting": 2, "detection": 1, "none: everyday": 1, "none: letters": 1,
        "unseen: segmentation": 1,
    }  # fmt: skip


def test_what_falls_back_at_a_threshold(found):
    low, high = found["thresholds"]
    assert [low[key]["value"] for key in ("right_adapter", "wrong_adapter", "known_fall_back")] == [0.75, 0.25, 0.0]
    assert low["no_task_falls_back"]["value"] == 0.0 and low["unseen_falls_back"]["value"] == 0.0
    # a score that is equal to the threshold is routed
    assert [high[key]["value"] for key in ("right_adapter", "wrong_adapter", "known_fall_back")] == [0.5, 0.25, 0.25]
    assert (high["no_task_falls_back"]["value"], high["no_task_falls_back"]["n"]) == (0.5, 2)
    assert high["by_group"]["none: letters"]["value"] == 1.0 and high["by_group"]["none: everyday"]["value"] == 0.0
    assert high["unseen_falls_back"]["interval"] is not None


def test_calibration_follows_the_equation():
    scores = np.array([0.82, 0.88, 0.31, 0.39, 1.0])
    right = np.array([True, False, True, True, True])
    found = calibration(scores, right)
    expected = 2 / 5 * abs(0.5 - 0.85) + 2 / 5 * abs(1.0 - 0.35) + 1 / 5 * 0.0
    assert found["ece"]["value"] == pytest.approx(expected, abs=1e-12) and found["ece"]["n"] == 5
    assert found["ece"]["interval"][0] <= found["ece"]["value"] <= found["ece"]["interval"][1]
    assert [row["n"] for row in found["bins"]] == [0, 0, 0, 2, 0, 0, 0, 0, 2, 1]
    assert "biased" in found["ece"]["caution"]


def test_scores_that_tell_the_truth_have_no_calibration_error_and_boasting_ones_have():
    rng = np.random.default_rng(0)
    scores = rng.uniform(0, 1, 40_000)
    right = rng.uniform(0, 1, 40_000) < scores
    assert calibration(scores, right, resamples=2)["ece"]["value"] < 0.01
    assert calibration(np.full(40_000, 0.99), right, resamples=2)["ece"]["value"] == pytest.approx(0.49, abs=0.01)


def test_questions_that_flip_with_the_order_of_labels_are_counted(found):
    assert found["orders"] is None, "it is told no labels"
    orders = evaluate_router(Ordered(), asked_of([source()], TASKS), [0.5], orders=20)["orders"]
    assert (orders["flips"]["value"], orders["flips"]["n"], orders["orders"]) == (0.25, 4, 20)
    assert orders["largest_change"] == pytest.approx(0.7) and orders["accuracy"]["low"] == 0.5
    assert orders["accuracy"]["high"] == 0.75


def test_the_orders_of_a_real_router_move_its_scores():
    router = GLiClassRouter(tiny_router(), {"router": "tiny"}, batch_size=2)
    found = evaluate_router(router, asked_of([source()], TASKS), [0.5], orders=4)
    assert found["orders"]["largest_change"] > 1e-6
    texts = [text for text, *_ in ROWS] + ["a much longer question with more words than the others"]
    whole = router.probabilities(texts)
    alone = np.concatenate([router.probabilities([text]) for text in texts])
    assert abs(whole - alone).max() < 1e-6, "rows come back in the order of the questions"


def test_a_question_counts_once_and_none_without_a_known_task_is_refused():
    assert len(asked_of([source(), source()], TASKS).texts) == len(ROWS)
    with pytest.raises(DataError, match="no question has one of the router's tasks"):
        asked_of([source(ROWS[4:])], TASKS)


@pytest.mark.parametrize("question", ["", " "])
def test_an_empty_question_is_refused_by_the_trained_router(question):
    with pytest.raises(DataError, match="question 1 of 1 is empty"):
        GLiClassRouter(tiny_router(), {}).probabilities([question])
    with pytest.raises(ConfigError, match="batch_size"):
        GLiClassRouter(tiny_router(), {}, batch_size=0)


def test_the_page_shows_numbers_with_n_and_escapes_names(found):
    page = router_page({"<b>one</b>": found, "two": found}, "Routers")
    assert "<b>one" not in page and "n = 4" in page and "75.0" in page and page.count("data:image/svg+xml") == 2


def test_the_recipes_fit_evaluate_and_write_a_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    questions = write_questions(tmp_path)
    data = {
        "_component_": "medtune.datasets.task_questions.task_questions", "files": str(questions), "split": "all",
        "no_task": [], "tasks": list(TASKS),
    }  # fmt: skip
    fit = {"output_dir": "runs/tfidf", "labels": list(TASKS), "dataset": data}
    (tmp_path / "fit.yaml").write_text(json.dumps(fit))
    assert tfidf_router.main(["--config", "fit.yaml"]) == 0
    assert tfidf_router.main(["--config", "fit.yaml", "inverse_penalty=3"]) == 0, "a router may be fitted again"
    other = {"_component_": "medtune.datasets.task_questions.unseen_task_questions"}
    values = {"output": "out", "routers": {"words": "runs/tfidf"}, "dataset": data, "others": [other]}
    (tmp_path / "evaluate.yaml").write_text(json.dumps(values))
    assert recipe.main(["--config", "evaluate.yaml", "thresholds=[0.3,0.5]"]) == 0
    results = json.loads((tmp_path / "out" / "router_results.json").read_text())
    words = results["routers"]["words"]
    assert words["accuracy"]["value"] == 1.0 and words["thresholds"][0]["unseen_falls_back"]["n"] > 20
    assert "threshold 0.5" in capsys.readouterr().out
    assert "Reliability" in (tmp_path / "out" / "router_report.html").read_text()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["routers={}"], "routers must name one"),
        (["thresholds=[1.5]"], "thresholds lie from 0 to 1"),
        (["routers={a: absent}"], "holds no task router"),
    ],
)
def test_an_evaluation_that_cannot_be_made_is_said_in_a_sentence(overrides, said, tmp_path, capsys):
    values = {"output": "out", "routers": {"a": "b"}, "dataset": {
        "_component_": "medtune.datasets.task_questions.task_questions", "split": "all"}}  # fmt: skip
    (tmp_path / "e.yaml").write_text(json.dumps(values))
    assert recipe.main(["--config", str(tmp_path / "e.yaml"), *overrides]) == 2
    assert said in capsys.readouterr().err


def test_weights_of_something_else_are_not_replaced(tmp_path, capsys):
    (tmp_path / "run" / "weights").mkdir(parents=True)
    (tmp_path / "run" / "weights" / "notes.txt").write_text("mine")
    questions = write_questions(tmp_path)
    data = {"_component_": "medtune.datasets.task_questions.task_questions", "files": str(questions), "split": "all",
            "no_task": [], "tasks": list(TASKS)}  # fmt: skip
    (tmp_path / "fit.yaml").write_text(
        json.dumps({"output_dir": str(tmp_path / "run"), "labels": list(TASKS), "dataset": data})
    )
    assert tfidf_router.main(["--config", str(tmp_path / "fit.yaml")]) == 2
    assert "did not write" in capsys.readouterr().err
    assert (tmp_path / "run" / "weights" / "notes.txt").read_text() == "mine"


def test_a_damaged_export_is_refused(tmp_path):
    from medtune.models.weights import save_hf

    model = tiny_router()
    save_hf(model.state_dict(), model.family, tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="no tokenizer"):
        GLiClassRouter.load(tmp_path)
