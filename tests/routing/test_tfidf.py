import json
import os

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from medtune.errors import ConfigError, DataError, ModelError
from medtune.routing.loading import load_router
from medtune.routing.questions import require_tasks
from medtune.routing.tfidf import TfidfRouter
from tests.routing.routed_questions import QUESTIONS, TASKS, rows


@pytest.fixture(scope="module")
def router() -> TfidfRouter:
    texts, tasks = rows()
    return TfidfRouter.fit(texts, tasks, TASKS)


def test_probabilities_are_those_of_scikit_learn() -> None:
    texts, tasks = rows()
    kept = [(text, task) for text, task in zip(texts, tasks, strict=True) if task is not None]
    texts, tasks = [text for text, _ in kept], [task for _, task in kept]
    vectorizer = TfidfVectorizer(token_pattern=r"\w+|[^\w\s]")
    reference = LogisticRegression(C=3.0, tol=1e-10, max_iter=5000).fit(vectorizer.fit_transform(texts), tasks)
    own = TfidfRouter.fit(texts, tasks, TASKS, inverse_penalty=3.0, min_texts=1, balanced=False)
    asked = [*texts, "Count the masses: A or B?", "unheard words"]
    np.testing.assert_allclose(
        own.probabilities(asked), reference.predict_proba(vectorizer.transform(asked)), atol=2e-6
    )
    assert list(reference.classes_) == list(own.labels)


def test_two_tasks_have_the_probabilities_of_a_binary_regression() -> None:
    texts, tasks = QUESTIONS["counting"] + QUESTIONS["detection"], ["counting"] * 4 + ["detection"] * 4
    vectorizer = TfidfVectorizer(token_pattern=r"\w+|[^\w\s]")
    reference = LogisticRegression(C=10.0, tol=1e-10).fit(vectorizer.fit_transform(texts), tasks)
    own = TfidfRouter.fit(texts, tasks, ["counting", "detection"], min_texts=1)
    found = own.probabilities(texts)
    np.testing.assert_allclose(found, reference.predict_proba(vectorizer.transform(texts)), atol=2e-6)


def test_features_follow_the_formula(router: TfidfRouter) -> None:
    texts, _ = rows()
    token = list(router.vocabulary).index("cells")
    holding = sum("cells" in text.lower() for text in texts)
    assert router.idf[token] == pytest.approx(np.log((1 + len(texts)) / (1 + holding)) + 1)
    weights = {"cells": 2.0, "count": 1.0}
    known = {word: count for word, count in weights.items() if word in router.vocabulary}
    columns = [list(router.vocabulary).index(word) for word in known]
    vector = np.array(list(known.values())) * router.idf[columns]
    logits = router.coefficients[:, columns] @ (vector / np.linalg.norm(vector)) + router.intercept
    expected = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(router.probabilities(["Cells cells COUNT unheard"])[0], expected, atol=1e-12)


def test_a_text_of_no_task_has_a_lower_score_than_without_such_texts_in_the_fit(router: TfidfRouter) -> None:
    texts, tasks = rows()
    kept = [number for number, task in enumerate(tasks) if task is not None]
    without = TfidfRouter.fit([texts[n] for n in kept], [tasks[n] for n in kept], TASKS)
    asked = ["a lovely story of the sea", "xkcd plugh qux"]
    assert (router.probabilities(asked).max(1) < without.probabilities(asked).max(1)).all()
    assert router.probabilities(["xkcd plugh qux"]).max() < 0.4
    assert router.probabilities(texts)[kept].max(1).min() > 0.5


def test_a_rare_task_is_not_outweighed() -> None:
    texts, tasks = QUESTIONS["counting"] * 5 + QUESTIONS["detection"][:2], ["counting"] * 20 + ["detection"] * 2
    scores = [
        TfidfRouter.fit(texts, tasks, ["counting", "detection"], balanced=balanced).probabilities(["unheard"])[0, 1]
        for balanced in (True, False)
    ]
    assert scores[0] > 2 * scores[1]


def test_a_saved_router_gives_the_same_probabilities(router: TfidfRouter, tmp_path) -> None:
    texts, _ = rows()
    router.save(tmp_path / "weights")
    for folder in (tmp_path / "weights", tmp_path):  # the weights, and the run that holds them
        again = load_router(folder)
        assert (again.probabilities(texts) == router.probabilities(texts)).all()
        assert again.labels == TASKS and again.identity() == router.identity()
    assert sorted(path.name for path in (tmp_path / "weights").iterdir()) == ["config.json", "model.safetensors"]


def test_a_router_of_other_weights_has_another_identity(router: TfidfRouter) -> None:
    texts, tasks = rows()
    other = TfidfRouter.fit(texts, tasks, TASKS, inverse_penalty=1.0)
    assert other.identity() != router.identity()
    assert TfidfRouter.fit(texts, tasks, TASKS).identity() == router.identity()


def test_a_question_is_answered_alone_as_among_others(router: TfidfRouter) -> None:
    texts, _ = rows()
    together = router.probabilities(texts)
    alone = np.concatenate([router.probabilities([text]) for text in texts])
    assert (together == alone).all()
    assert router.probabilities([]).shape == (0, 3)


@pytest.mark.parametrize("question", ["", "  \n", None, 7])
def test_an_empty_question_is_refused(router: TfidfRouter, question) -> None:
    with pytest.raises(DataError, match="question 2 of 2 is empty"):
        router.probabilities(["How many cells?", question])


def test_one_text_in_place_of_a_list_is_refused(router: TfidfRouter) -> None:
    with pytest.raises(DataError, match="a list of questions"):
        router.probabilities("How many cells?")


@pytest.mark.parametrize(
    ("texts", "tasks", "labels", "said"),
    [
        (["a b", "a c"], ["x", "z"], ["x", "y"], "questions of the task 'z'"),
        (["a b", "a c"], ["x", "x"], ["x", "y"], "no question of the task 'y'"),
        (["a b", "a c"], ["x", "y"], ["x"], "two or more"),
        (["a b", "a c"], ["x", "y"], ["x", "y", "x"], "different names"),
        (["a b", "a c"], ["x", "y"], ["x", " "], "different names"),
    ],
)
def test_labels_and_tasks_that_do_not_fit_are_refused(texts, tasks, labels, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        TfidfRouter.fit(texts, tasks, labels)


def test_questions_without_a_common_token_are_refused() -> None:
    with pytest.raises(DataError, match="no token in common"):
        TfidfRouter.fit(["one", "two"], ["x", "y"], ["x", "y"])


def test_a_router_that_lacks_a_task_is_refused(router: TfidfRouter) -> None:
    require_tasks(router.labels, ["counting"])
    with pytest.raises(ConfigError, match="does not know the task 'report_generation'.*classification, counting"):
        require_tasks(router.labels, ["counting", "report_generation"], "router")


def _without_weights(folder) -> None:
    (folder / "model.safetensors").unlink()


def _torn(folder) -> None:
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-9])


def _other_labels(folder) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "labels": ["one", "two"]}))


def _no_labels(folder) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "medtune_tfidf_router"}))


def _a_list(folder) -> None:
    (folder / "config.json").write_text("[]")


def _no_json(folder) -> None:
    (folder / "config.json").write_text("{")


def _fifo(folder) -> None:
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")


def _other_model(folder) -> None:
    (folder / "config.json").write_text('{"model_type": "llava"}')


@pytest.mark.parametrize(
    "damage", [_without_weights, _torn, _other_labels, _no_labels, _a_list, _no_json, _fifo, _other_model]
)
def test_a_damaged_folder_is_refused(router: TfidfRouter, tmp_path, damage) -> None:
    folder = router.save(tmp_path / "router")
    damage(folder)
    with pytest.raises(ModelError, match="router"):
        load_router(folder)


def test_a_folder_without_a_router_is_refused(tmp_path) -> None:
    with pytest.raises(ModelError, match="holds no task router"):
        load_router(tmp_path)
