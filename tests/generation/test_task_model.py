"""A task-specific model in the place of a language model: its labels and scores, and what it will not answer."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from medtune.datasets import jsonl_dataset
from medtune.errors import ConfigError, DataError, ModelError
from medtune.evaluation.protocols.registry import plan_queries
from medtune.generation.backends.base import AnswerSettings
from medtune.generation.backends.task_model import TaskModelBackend
from medtune.generation.engine.sampling import Sampling
from medtune.generation.requests import Generation, Request
from medtune.models.classifier.tsm import LabelledSet, TaskModel, load_tsm
from medtune.models.weights import save_hf
from tests.labelled_pictures import CLASSES, TINY_VIT, write

SETS = {name: LabelledSet(task, classes) for name, (task, classes) in reversed(CLASSES.items())}


def saved(folder: Path, sets: dict[str, LabelledSet] = SETS) -> str:
    torch.manual_seed(4)
    model = TaskModel("vit_tiny_patch16_224", sets, 8, arguments=TINY_VIT)
    with torch.no_grad():
        model.encoder.head.weight.normal_(std=2.0)
    folder.mkdir(parents=True, exist_ok=True)
    save_hf(model.state_dict(), model.family, folder)
    return str(folder)


def asked(folder: Path, protocol: str = "classification") -> list[Request]:
    source = jsonl_dataset(write(folder), image_root=str(folder))
    samples = [source[index] for index in range(18)]
    if protocol != "classification":  # several findings have no single right option
        samples = [sample for sample in samples if sample.meta["set"] != "chest"]
    queries = plan_queries(samples, [protocol])
    return [Request(query.id, query.sample, source, query.continuations) for query in queries]


def answers(backend: TaskModelBackend, requests: list[Request], refused: list[str] | None = None) -> list[Generation]:
    note = None if refused is None else lambda request, error: refused.append(f"{request.id}: {error}")
    opened = backend.open(AnswerSettings(8, torch.device("cpu"), torch.float32, note))
    return [answer for block in opened.batches(requests) for answer in block]


@pytest.mark.parametrize("threshold", [0.5, 0.2])
def test_answers_are_the_models_labels_with_a_score_for_each_class(tmp_path: Path, threshold: float) -> None:
    path, requests = saved(tmp_path / "tsm"), asked(tmp_path)
    found = answers(TaskModelBackend(path, threshold=threshold), requests)
    model = load_tsm(path)
    assert [one.id for one in found] == [request.id for request in requests]
    texts = set()
    for one, request in zip(found, requests, strict=True):
        name = request.sample.meta["set"]
        pixels = model.transform.pixels(request.source.open_images(request.sample)[0])
        logits = model.logits(pixels[None])[0, model.slice(name)]
        classes = CLASSES[name][1]
        if name == "chest":
            scores = torch.sigmoid(logits)
            named = [label for label, score in zip(classes, scores.tolist(), strict=True) if score >= threshold]
            assert one.text == ("; ".join(named) or "no finding")
        else:
            scores = torch.softmax(logits, 0)
            assert one.text == classes[int(scores.argmax())]
        assert one.scores == pytest.approx(scores.tolist(), abs=1e-6) and one.stopped and one.tokens == 0
        texts.add(one.text)
    assert len(texts) > 3


def test_batches_change_nothing_and_what_is_done_is_not_asked_again(tmp_path: Path) -> None:
    path, requests = saved(tmp_path / "tsm"), asked(tmp_path)
    whole = answers(TaskModelBackend(path), requests)
    for one, other in zip(whole, answers(TaskModelBackend(path, batch_size=5), requests), strict=True):
        assert one.text == other.text and one.scores == pytest.approx(other.scores, abs=1e-6)
    opened = TaskModelBackend(path, batch_size=4).open(AnswerSettings(8, torch.device("cpu"), torch.float32))
    done = {request.id for request in requests[:7]}
    rest = [answer for block in opened.batches(requests, done) for answer in block]
    assert [one.id for one in rest] == [request.id for request in requests[7:]]
    assert opened.images_encoded == 11


def test_other_questions_and_other_sets_are_refused(tmp_path: Path) -> None:
    path, refused = saved(tmp_path / "tsm"), []
    questions = asked(tmp_path, "multiple_choice")
    assert answers(TaskModelBackend(path), questions, refused) == []
    assert len(refused) == len(questions) and all("classification questions on one image" in one for one in refused)
    with pytest.raises(DataError, match="classification questions"):
        answers(TaskModelBackend(path), questions)
    swapped = {**SETS, "cells": LabelledSet("multi_class", ("long", "round", "torn"))}
    refused.clear()
    found = answers(TaskModelBackend(saved(tmp_path / "other", swapped)), asked(tmp_path), refused)
    assert len(refused) == 6 and all("'cells' has the 3 classes 'round'" in one for one in refused)
    assert len(found) == 12
    fewer = {"chest": SETS["chest"]}
    with pytest.raises(DataError, match="does not know the set 'cells'.*'chest'"):
        answers(TaskModelBackend(saved(tmp_path / "fewer", fewer)), asked(tmp_path))


def test_identity_is_the_weights_the_config_and_the_threshold(tmp_path: Path) -> None:
    path = saved(tmp_path)
    known: dict[str, Any] = TaskModelBackend(path).identity()
    assert set(known["files"]) == {"config.json", "model.safetensors"}
    assert TaskModelBackend(path, batch_size=2).identity() == known
    assert TaskModelBackend(path, threshold=0.4).identity() != known


def test_a_backend_needs_a_model_and_sizes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no config.json; name the weights folder"):
        TaskModelBackend(str(tmp_path))
    path = saved(tmp_path)
    for wrong in ({"batch_size": 0}, {"threshold": 1.0}, {"threshold": 0.0}):
        with pytest.raises(ConfigError, match="batch_size must be at least 1"):
            TaskModelBackend(path, **wrong)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelError, match="holds no task-specific model"):
        TaskModelBackend(path).open(AnswerSettings(8, torch.device("cpu"), torch.float32))


def test_an_external_set_is_answered_by_the_head_of_another_one(tmp_path: Path) -> None:
    requests = [one for one in asked(tmp_path) if one.sample.meta["set"] == "cells"]
    renamed = {"other": SETS["cells"], "grades": SETS["grades"]}
    path = saved(tmp_path / "tsm")
    external = saved(tmp_path / "external", renamed)
    with pytest.raises(DataError, match="does not know the set 'cells'"):
        answers(TaskModelBackend(external), requests)
    backend = TaskModelBackend(external, heads={"cells": "other"})
    model = load_tsm(external)
    for one, request in zip(answers(backend, requests), requests, strict=True):
        pixels = model.transform.pixels(request.source.open_images(request.sample)[0])
        scores = model.logits(pixels[None])[0, model.slice("other")].softmax(0)
        assert one.scores == pytest.approx(scores.tolist(), abs=1e-6)
        assert one.text == CLASSES["cells"][1][int(scores.argmax())]
    assert backend.identity() != TaskModelBackend(external).identity()
    with pytest.raises(DataError, match="'grades' has the 3 classes"):
        answers(TaskModelBackend(path, heads={"cells": "grades"}), requests)


def test_a_classifier_draws_no_tokens(tmp_path: Path) -> None:
    backend, requests = TaskModelBackend(saved(tmp_path / "tsm")), asked(tmp_path)
    settings = AnswerSettings(8, torch.device("cpu"), torch.float32, sampling=Sampling())
    with pytest.raises(ConfigError, match="draws no tokens; leave sampling out"):
        backend.open(settings)
    with pytest.raises(ConfigError, match="draws no tokens"):
        answers(backend, [replace(requests[0], sampling=Sampling())], refused=[])
