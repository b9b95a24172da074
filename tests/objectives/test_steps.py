"""One step of InstFree and of SFT against the equation, sample by sample, from full logits."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from medtune.data.training_set import TrainingSet
from medtune.objectives.instfree import InstFree, random_instructions
from medtune.objectives.sft import SFT
from tests.objectives.tiny_vitask import ALIGN, batch_of, close, family, loss_and_gradients

CHOSEN = [1, 4, 2, 20]  # answers of several lengths; the third picture has two tiles where a model takes tiles


def by_hand(task: SimpleNamespace, model: Any, transform: Any, method: Any) -> tuple[Tensor, int]:
    """``-sum_i log f(y_i | X_v, t, y_<i)`` (InstFree, Eq. 1 and 2), one sample after the other."""
    total, count = torch.zeros(()), 0
    samples = TrainingSet(task.source, method.items(task.source, np.arange(len(task.source)), ALIGN), transform, seed=3)
    for index in CHOSEN:
        row = transform.collate([samples[(0, index, True)]])
        tokens, labels, replace = row["tokens"], row["labels"][0].tolist(), None
        if isinstance(method, InstFree) and method.proxy is not None:
            places = [i for i, token in enumerate(tokens[0].tolist()) if token == transform.placeholder_id]
            assert len(places) == method.vectors and places == list(range(places[0], places[-1] + 1))
            where = torch.zeros_like(tokens, dtype=torch.bool)
            where[0, places] = True
            replace = where, method.proxy.weight
        hidden = model.hidden(tokens, model.encode(row["vision"]), vision_mask=row["vision_mask"], replace=replace)
        log_probs = model.logits(hidden)[0].log_softmax(-1)
        for place, label in enumerate(labels):
            if label != -100:
                total, count = total - log_probs[place - 1, label], count + 1
    return total, count


def test_a_method_that_says_nothing_runs_one_row_for_a_sample() -> None:
    """``medtune plan`` counts activations of the micro-batch times this."""
    assert SFT().rows == InstFree().rows == 1


@pytest.mark.parametrize("method", ["momentum", "text", "sft"])
@pytest.mark.parametrize("name", ["cross-attention", "internvl"])
def test_a_batch_is_the_equation_sample_by_sample(task: SimpleNamespace, name: str, method: str) -> None:
    model, transform = family(name)
    objective: Any = SFT(chunk_tokens=4) if method == "sft" else InstFree(method, 3, sigma=0.5, chunk_tokens=4)
    objective.bind(model, transform, seed=2)
    expected, count = by_hand(task, model, transform, objective)
    expected.backward()
    named = {**dict(model.named_parameters()), **dict(objective.named_parameters())}
    theirs = {name: parameter.grad.clone() for name, parameter in named.items() if parameter.grad is not None}
    assert ("proxy.weight" in theirs) == (method == "momentum") and any("encoder" in name for name in theirs)
    output, ours = loss_and_gradients(model, objective, batch_of(task, objective, transform, CHOSEN))
    assert output.loss_sum.item() == pytest.approx(expected.item(), rel=1e-6)
    assert output.weight.item() == count and not output.metrics
    close({key: value for key, value in ours.items() if key in theirs}, theirs)
    assert theirs.keys() <= ours.keys() and all(not ours[key].any() for key in ours.keys() - theirs.keys())


@pytest.mark.parametrize("method", [SFT(chunk_tokens=3), InstFree("text", chunk_tokens=3)])
def test_no_more_logits_live_than_asked_for(
    task: SimpleNamespace, method: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, transform = family("internvl")
    method.bind(model, transform, seed=2)
    sizes: list[int] = []
    logits = model.logits
    monkeypatch.setattr(model, "logits", lambda hidden: sizes.append(len(hidden)) or logits(hidden))
    batch = batch_of(task, method, transform, CHOSEN)
    method(model, batch)
    assert max(sizes) <= 3 and sum(sizes) == batch["labels"].ne(-100).sum()


def test_given_features_are_not_encoded_again(task: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    model, transform = family("internvl")
    for objective in (SFT(), InstFree()):
        objective.bind(model, transform, seed=2)
        batch = batch_of(task, objective, transform, CHOSEN)
        plain = objective(model, batch).loss_sum.item()
        given = {**batch, "features": model.encode(batch["vision"])}
        del given["vision"]
        assert objective(model, given).loss_sum.item() == plain


def test_each_mode_asks_in_its_own_words() -> None:
    transform = SimpleNamespace(placeholder_text="*", placeholder_id=7)
    asked = {}
    for mode in ("momentum", "update", "fixed", "text", "random_text"):
        objective = InstFree(mode, vectors=2, instruction="Say what you see.")
        objective.bind(SimpleNamespace(embed_dim=3), transform, seed=0)
        asked[mode] = objective.sample_transform().instructions  # type: ignore[attr-defined]
    assert asked["momentum"] == asked["update"] == asked["fixed"] == ("**",)
    assert asked["text"] == ("Say what you see.",) and asked["random_text"] == random_instructions()
