"""Training of a task router: items, losses, and runs that stop, go on and divide as every run does."""

import json

import pytest
import torch

from medtune.data.randomness import sample_rng
from medtune.data.sample import Message, Sample
from medtune.datasets.task_questions.builder import QuestionSource
from medtune.datasets.task_questions.rows import Pair
from medtune.errors import ConfigError, DataError, ModelError
from medtune.objectives import TaskRouting
from medtune.objectives.task_routing import RoutedQuestions
from medtune.routing import load_router
from tests.routing.routed_questions import TASKS
from tests.routing.tiny_router import config, run_values, tiny_router, write_questions
from tests.runs import die_at, largest_difference, launch, losses, metrics, weights

SOURCE = QuestionSource(
    [Pair("a", "How many cells?", "counting", "a", "real"), Pair("b", "zxq brf", "none", "b", "letters")], "two"
)


def batch_of(model, shuffle=False, epoch=0):
    items = RoutedQuestions(TASKS, shuffle)
    made = [items(SOURCE, row, sample_rng(0, epoch, row), model.transform) for row in range(2)]
    return items.collate(made, model.transform)


@pytest.mark.parametrize("loss", ["cross_entropy", "focal"])
def test_the_loss_of_a_batch_is_the_sum_of_the_equations(loss):
    model = tiny_router()
    objective = TaskRouting(loss, gamma=2.0)
    objective.bind(model, model.transform, 0)
    batch = batch_of(model)
    batch["weight"] = torch.tensor([2.0, 0.5], dtype=torch.float64)
    found = objective(model, batch)
    scores = model.logits(batch["tokens"], batch["padding"]).double()
    at = TASKS.index("counting")
    if loss == "cross_entropy":
        task = -scores[0].log_softmax(0)[at]
        none = -scores[1].log_softmax(0).mean()
    else:
        p = scores.sigmoid()
        signs = torch.tensor([number == at for number in range(3)])
        right = torch.where(signs, p[0], 1 - p[0])
        task = (-((1 - right) ** 2) * right.log()).mean()
        none = (-(p[1] ** 2) * (1 - p[1]).log()).mean()
    torch.testing.assert_close(found.loss_sum, 2.0 * task + 0.5 * none, atol=1e-9, rtol=0)
    assert found.weight == objective.weight(batch) == 2.5


def test_a_question_counts_as_routed_right_by_label_and_threshold_and_a_text_of_no_task_by_falling_back():
    class Scores:
        def __init__(self, rows):
            self.rows = rows

        def logits(self, tokens, padding):
            return torch.tensor(self.rows)

    batch = {
        "tokens": None,
        "padding": None,
        "target": torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]], dtype=torch.float64),
        "weight": torch.tensor([1.0, 10, 100, 1000, 10000], dtype=torch.float64),
    }
    flat, sure = [0.1, 0.0, 0.0], [9.0, 0.0, 0.0]
    found = TaskRouting(threshold=0.5)(Scores([sure, sure, flat, sure, flat]), batch)
    assert found.metrics["routed_right"] == 1 + 10000


def test_labels_have_another_order_in_each_epoch_and_the_same_one_again_for_the_seed():
    model = tiny_router()
    orders = {epoch: batch_of(model, True, epoch)["target"].tolist()[0] for epoch in range(12)}
    assert len({tuple(target) for target in orders.values()}) == 3, "the task was at each place"
    assert orders == {epoch: batch_of(model, True, epoch)["target"].tolist()[0] for epoch in range(12)}
    assert batch_of(model, False, 3)["target"].tolist()[0] == [float(task == "counting") for task in TASKS]


def test_a_target_stands_where_the_prompt_names_its_label():
    model = tiny_router()
    for epoch in range(6):
        batch = batch_of(model, True, epoch)
        tokens = batch["tokens"][0].tolist()
        places = [at for at, token in enumerate(tokens) if token == model.transform.label_id]
        name = model.transform.tokenizer.encode("counting", first=False)
        named = [tokens[at + 1 : at + 1 + len(name)] == name for at in places]
        assert named == [bool(value) for value in batch["target"][0].tolist()]


def test_a_sample_of_an_unknown_task_is_named_and_not_quoted():
    source = QuestionSource([Pair("x1", "secret words", "segmentation", "x", "real")], "file")
    model = tiny_router()
    for call in (RoutedQuestions(TASKS, False), RoutedQuestions(TASKS, False).measure):
        with pytest.raises(DataError, match="x1.*classification, counting, detection") as raised:
            call(source, 0, sample_rng(0, 0, 0), model.transform)
        assert "secret" not in str(raised.value)


@pytest.mark.parametrize("text", ["", " <image> "])
def test_an_empty_question_is_refused(text):
    class One:
        name = "one"

        def __getitem__(self, index):
            return Sample("x1", (), (Message("user", text),), {"task": "counting"})

    with pytest.raises(DataError, match="x1.*no question"):
        RoutedQuestions(TASKS, False).measure(One(), 0, sample_rng(0, 0, 0), tiny_router().transform)


def test_a_question_that_is_too_long_is_refused_before_training():
    source = QuestionSource([Pair("x1", "cell " * 400, "counting", "x", "real")], "file")
    with pytest.raises(DataError, match="x1.*the limit is 160"):
        RoutedQuestions(TASKS, False).measure(source, 0, sample_rng(0, 0, 0), tiny_router().transform)


@pytest.mark.parametrize("values", [{"alpha": 1.5}, {"gamma": -1.0}, {"threshold": 1.1}, {"threshold": -0.1}])
def test_values_out_of_range_are_refused(values):
    with pytest.raises(ConfigError, match="objective: alpha"):
        TaskRouting(**values)


def test_a_transform_of_other_labels_or_another_model_is_refused():
    model = tiny_router()
    with pytest.raises(ConfigError, match="different labels"):
        TaskRouting().bind(model, tiny_router(("a", "b")).transform, 0)
    with pytest.raises(ConfigError, match="trains a model of"):
        TaskRouting().bind(torch.nn.Linear(1, 1), model.transform, 0)
    with pytest.raises(ConfigError, match="needs medtune.models.task_router"):
        TaskRouting().bind(model, None, 0)
    model.missing = ("the pretrained weights are not here",)
    with pytest.raises(ModelError, match="not here"):
        TaskRouting().bind(model, model.transform, 0)


@pytest.fixture(scope="module")
def values(tmp_path_factory):
    return run_values(write_questions(tmp_path_factory.mktemp("rows")))


@pytest.fixture(scope="module")
def plain(values, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    assert launch(config(folder, values)) == [0]
    return folder


def test_a_killed_run_goes_on_to_the_bit(plain, values, tmp_path):
    assert launch(config(tmp_path, values, save_every_steps=2), harm=die_at(3)) == [9]
    assert launch(config(tmp_path, values, save_every_steps=2)) == [0]
    assert [line for line in metrics(tmp_path) if line["step"] > 4] == [
        line for line in metrics(plain) if line["step"] > 4
    ]
    assert largest_difference(weights(plain), weights(tmp_path)) == 0.0


@pytest.mark.slow
def test_two_processes_and_accumulation_are_one_process(plain, values, tmp_path):
    # without dropout, whose draws depend on the micro-batch, and by an optimizer that does not enlarge rounding
    plain_steps = {"_component_": "torch.optim.SGD", "lr": 0.5}
    same = {"model": {**values["model"], "dropout": 0.0}, "optimizer": plain_steps}
    runs = {"one": {}, "two": {"batch_size": 3}, "accumulated": {"batch_size": 2, "gradient_accumulation_steps": 3}}
    for name, changes in runs.items():
        world = 2 if name == "two" else 1
        assert launch(config(tmp_path / name, values, **same, **changes), world) == [0] * world
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "one"), abs=1e-6)
        assert largest_difference(weights(tmp_path / "one"), weights(tmp_path / name)) < 1e-6


def test_a_run_writes_a_router_that_the_loader_reads(plain):
    router = load_router(plain)
    assert router.labels == TASKS and router.identity() == load_router(plain / "weights").identity()
    scores = router.probabilities(["How many cells?", "zxq", "a longer question about many cells in this image"])
    assert scores.shape == (3, 3) and abs(scores.sum(1) - 1).max() < 1e-9
    assert "routed_right" in metrics(plain)[0] and "validation_routed_right" in metrics(plain)[-1]


def test_a_frozen_encoder_stays_as_it_is(plain, values, tmp_path):
    still = {"_component_": "torch.optim.SGD", "lr": 1e-30}
    assert launch(config(tmp_path, values, trainable=["head"], max_steps=2)) == [0]
    assert launch(config(tmp_path / "first", values, max_steps=1, optimizer=still)) == [0]
    first, after = weights(tmp_path / "first"), weights(tmp_path)
    changed = {name for name in first if ((first[name] - after[name]).abs() > 1e-20).any()}
    assert changed and all("encoder_model" not in name for name in changed)


def test_a_row_of_an_unknown_task_stops_the_run_with_a_sentence(values, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"question": "secret words", "task": "segmentation"}) + "\n")
    changed = {**values["dataset"], "files": str(file)}
    assert launch(config(tmp_path / "run", values, dataset=changed, dataset_val=None)) == [2]
    said = (tmp_path / "run" / "error_0.txt").read_text()
    assert "rows.jsonl, row 1: the task is unknown; known are classification, counting, detection" in said
    assert "secret" not in said
