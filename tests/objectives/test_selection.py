"""Training of a selection model: items of both sources, the weight w, and the loss of a batch."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from medtune.data.randomness import sample_rng
from medtune.data.sample import Message, Sample
from medtune.errors import ConfigError, DataError, ModelError
from medtune.models.selector.model import SelectionModel
from medtune.objectives import Selection
from medtune.objectives.base import Stage
from medtune.objectives.selection import PairItems

STAGE = Stage("train", ("head",))


class Transform:
    """Reads the features that a side holds itself."""

    looks, max_seq_len, dtype = False, 1, torch.float32

    def inputs(self, side, open_image):
        return {"features": torch.tensor(side["features"], dtype=torch.float32)}

    def settings(self):
        return {"parts": [2, 2], "features": None}


class Pairs:
    """Two pairs of people and six of a model."""

    name = "pairs"

    def __init__(self, human=2, model=6):
        self.sources = ["human"] * human + ["model"] * model

    def __len__(self):
        return len(self.sources)

    def __getitem__(self, index):
        sides = {
            name: {"number": 2 * index + at, "text": "", "features": [float(index), float(at), 1.0, 0.5]}
            for at, name in enumerate(("preferred", "rejected"))
        }
        meta = {"source": self.sources[index], **sides}
        return Sample(f"p{index}", (), (Message("user", "Q"), Message("assistant", "A")), meta)


def tiny(seed=0):
    torch.manual_seed(seed)
    return SelectionModel(Transform(), (2, 2), (5,))


def bound(**how):
    model, objective = tiny(), Selection(**how)
    objective.bind(model, model.transform, 0)
    return model, objective


def items_of(objective, source):
    return objective.items(source, np.arange(len(source)), STAGE)


def batch_of(items, source, epoch=0, rows=None):
    rows = range(len(source)) if rows is None else rows
    return items.collate([items(source, row, sample_rng(0, epoch, row), Transform()) for row in rows], Transform())


@pytest.mark.parametrize("loss", ["logistic", "literal", "hinge"])
def test_the_loss_of_a_shuffled_batch_is_eq_3_over_its_pairs(loss):
    model, objective = bound(loss=loss, human_weight=7.0, mixing="shuffled")
    source = Pairs()
    batch = batch_of(items_of(objective, source), source)
    found = objective(model, batch)
    expected = 0.0
    for index in range(8):
        meta = source[index].meta
        score = [
            model.scores({"features": torch.tensor([meta[name]["features"]])}).double()
            for name in ("preferred", "rejected")
        ]
        if loss == "logistic":
            own = -torch.sigmoid(score[0] - score[1]).log()
        elif loss == "literal":
            own = -torch.sigmoid(score[0]).log()
        else:
            own = (1 - (torch.sigmoid(score[0]) - torch.sigmoid(score[1]))).clamp(min=0)
        expected += (7.0 if meta["source"] == "human" else 1.0) * own.item()
    assert found.loss_sum.item() == pytest.approx(expected, abs=1e-6)
    assert found.weight.item() == objective.weight(batch) == 8


def test_every_mixed_batch_holds_both_sources_and_its_items_weigh_one_each():
    model, objective = bound(human_weight=3.0)
    source = Pairs()
    items = items_of(objective, source)
    for rows in ([2], [5, 7], [0, 1]):
        batch = batch_of(items, source, rows=rows)
        assert batch["human"].sum() == len(rows) == (~batch["human"]).sum()
        assert objective.weight(batch) == pytest.approx(len(rows))
        assert batch["weight"][batch["human"]].eq(3.0).all() and batch["weight"][~batch["human"]].eq(1.0).all()
    assert objective(model, batch).weight.item() == pytest.approx(2)


def test_mixing_in_the_batch_has_the_expectation_of_the_shuffled_list():
    model, mixed = bound(human_weight=4.0)
    _, shuffled = bound(human_weight=4.0, mixing="shuffled")
    source = Pairs()
    plain = shuffled(model, batch_of(items_of(shuffled, source), source))
    items = items_of(mixed, source)
    epochs = [mixed(model, batch_of(items, source, epoch)) for epoch in range(400)]
    mean = sum(one.loss_sum.item() / one.weight.item() for one in epochs) / len(epochs)
    assert mean == pytest.approx(plain.loss_sum.item() / plain.weight.item(), rel=0.02)


def test_a_drawn_partner_depends_on_seed_epoch_and_row_alone():
    _, objective = bound()
    source = Pairs()
    items = items_of(objective, source)
    first = batch_of(items, source, 0)["inputs"]["features"]
    assert torch.equal(first, batch_of(items, source, 0)["inputs"]["features"])
    assert not torch.equal(first, batch_of(items, source, 1)["inputs"]["features"])


def test_pairs_of_one_source_are_not_mixed():
    _, objective = bound()
    for source in (Pairs(human=0), Pairs(model=0)):
        batch = batch_of(items_of(objective, source), source)
        assert len(batch["weight"]) == len(source) and objective.weight(batch) == len(source)


def test_a_blank_item_has_no_part_in_loss_weight_and_accuracy():
    model, objective = bound()
    source = Pairs()
    items = items_of(objective, source)
    made = [items(source, row, sample_rng(0, 0, row), Transform()) for row in (0, 3)]
    alone = objective(model, items.collate(made[:1], Transform()))
    padded = objective(model, items.collate([made[0], items.blank(made[1])], Transform()))
    assert padded.loss_sum.item() == alone.loss_sum.item() and padded.weight.item() == alone.weight.item()
    assert padded.metrics["accuracy"].item() == alone.metrics["accuracy"].item()


def test_accuracy_counts_a_tie_as_half():
    model = SimpleNamespace(scores=lambda inputs: torch.tensor([1.0, 2.0, 0.0, 1.0, 1.0, 5.0]))
    batch = {"inputs": {}, "weight": torch.ones(3).double(), "share": torch.ones(3).double()}
    assert Selection()(model, batch).metrics["accuracy"].item() == 1.5


def test_the_literal_loss_gives_rejected_samples_no_gradient_and_the_logistic_one_does():
    for loss, silent in (("literal", True), ("logistic", False)):
        _, objective = bound(loss=loss, mixing="shuffled")
        scores, source = torch.randn(16, requires_grad=True), Pairs()
        model = SimpleNamespace(scores=lambda inputs, scores=scores: scores)
        objective(model, batch_of(items_of(objective, source), source)).loss_sum.backward()
        assert bool((scores.grad[8:] == 0).all()) == silent and (scores.grad[:8] < 0).all()


@pytest.mark.parametrize(
    "values", [{"loss": "bpr"}, {"mixing": "none"}, {"human_weight": 0.0}, {"human_weight": -1.0}, {"margin": 0.0}]
)
def test_values_out_of_range_are_refused(values):
    with pytest.raises(ConfigError, match="objective: "):
        Selection(**values)


def test_another_model_other_inputs_and_missing_weights_are_refused():
    model = tiny()
    with pytest.raises(ConfigError, match="trains a model of medtune.models.selector"):
        Selection().bind(torch.nn.Linear(1, 1), model.transform, 0)

    class Other(Transform):
        def settings(self):
            return {"parts": [1, 3], "features": None}

    with pytest.raises(ConfigError, match="different inputs"):
        Selection().bind(model, Other(), 0)
    model.missing = ("the weights are not here",)
    with pytest.raises(ModelError, match="not here"):
        Selection().bind(model, model.transform, 0)


def test_a_row_that_is_no_pair_is_named():
    class Broken(Pairs):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            return Sample(sample.id, (), sample.messages, {**sample.meta, **self.change})

    items = PairItems(1.0)
    for change, what in (({"source": "nobody"}, "human or model"), ({"rejected": {}}, "'number', 'image' and 'text'")):
        source = Broken()
        source.change = change
        with pytest.raises(DataError, match=f"p1.*{what}"):
            items.measure(source, 1, sample_rng(0, 0, 1), Transform())
