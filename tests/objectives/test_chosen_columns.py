"""The last layer computes only states that predict a supervised token; loss and gradients are those of all states."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import medtune.objectives.instfree
import medtune.objectives.sft
import medtune.objectives.vitask.objective
from medtune.losses.cross_entropy import predicting_columns
from medtune.objectives.instfree import InstFree
from medtune.objectives.sft import SFT
from tests.objectives.tiny_vitask import ALIGN, BUILDERS, batch_of, bound, close, family, loss_and_gradients

CHOSEN = [1, 4, 2, 20]
MODULES = {
    "sft": medtune.objectives.sft,
    "sum": medtune.objectives.sft,
    "instfree": medtune.objectives.instfree,
    "vitask": medtune.objectives.vitask.objective,
}


def method(name: str, task: SimpleNamespace, model: Any, transform: Any) -> Any:
    if name == "vitask":
        return bound(task, model, transform, ALIGN, exemplar="none", alpha=0.0)
    objective: Any = {"sft": SFT(4), "sum": SFT(4, "sum"), "instfree": InstFree("momentum", 3, sigma=0.5)}[name]
    objective.bind(model, transform, seed=2)
    return objective


def compare(name: str, task: SimpleNamespace, kind: str, monkeypatch: pytest.MonkeyPatch, labels: Any = None) -> None:
    model, transform = family(kind)
    model.double()
    objective = method(name, task, model, transform).double()
    maker = method("sft" if name == "sum" else name, task, model, transform)
    batch = batch_of(task, maker, transform, CHOSEN)
    batch["vision"]["images"] = batch["vision"]["images"].double()
    if labels is not None:
        batch["labels"] = labels(batch["labels"])
    widths: list[int | None] = []
    hidden = model.hidden

    def seen(*arguments: Any, keep: Any = None, **more: Any) -> Any:
        widths.append(None if keep is None else keep.shape[1])
        return hidden(*arguments, keep=keep, **more)

    monkeypatch.setattr(model, "hidden", seen)
    fast, found = loss_and_gradients(model, objective, batch)
    monkeypatch.setattr(MODULES[name], "predicting_columns", lambda labels: None)
    plain, expected = loss_and_gradients(model, objective, batch)
    assert widths[0] is not None and widths[0] < batch["tokens"].shape[1] and widths[1] is None
    assert fast.loss_sum.item() == pytest.approx(plain.loss_sum.item(), rel=1e-7)
    assert fast.weight == plain.weight and fast.metrics.keys() == plain.metrics.keys()
    for key, value in plain.metrics.items():
        assert float(fast.metrics[key]) == pytest.approx(float(value), rel=1e-7)
    close(found, expected, 1e-6)  # rotary positions are computed in fp32


@pytest.mark.parametrize("kind", BUILDERS)
def test_sft_on_every_kind_of_decoder(kind: str, task: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    compare("sft", task, kind, monkeypatch)


@pytest.mark.parametrize("name", ["sum", "instfree", "vitask"])
def test_the_other_methods_with_a_cross_entropy(
    name: str, task: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare(name, task, "internvl", monkeypatch)


def test_rows_of_very_different_answers(task: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row without a supervised token, and one with a single token before many that are not supervised."""

    def cut(labels: torch.Tensor) -> torch.Tensor:
        labels = labels.clone()
        labels[0] = -100
        first = int((labels[1] != -100).nonzero()[0])
        labels[1, first + 1 :] = -100
        return labels

    compare("sft", task, "llava", monkeypatch, cut)


def test_the_columns_before_supervised_tokens() -> None:
    labels = torch.full((3, 8), -100)
    labels[0, [2, 5, 7]] = 4
    labels[1, [0, 3]] = 4  # nothing precedes the first token, so nothing predicts it
    columns = predicting_columns(labels)
    assert columns is not None and columns.shape == (3, 3)
    assert set(columns[0].tolist()) == {1, 4, 6} and 2 in columns[1].tolist()
    assert all(len(set(row)) == 3 for row in columns.tolist())


def test_all_columns_where_nearly_all_predict_and_one_where_none_does() -> None:
    labels = torch.full((2, 8), -100)
    columns = predicting_columns(labels)
    assert columns is not None and columns.shape == (2, 1)
    labels[0, 1:7] = 3
    assert predicting_columns(labels).shape == (2, 6)
    labels[0, 7] = 3
    assert predicting_columns(labels) is None
