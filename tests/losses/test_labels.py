"""Losses of class labels against their formulas written out, in fp64, forward and backward."""

import math

import pytest
import torch
from torch import Tensor

from medtune.losses.labels import label_losses, labels_right

LOGITS = [[0.3, -1.2, 2.0, 0.5, -0.4], [9.0, 9.0, 9.0, 0.7, -0.2], [1.0, 0.1, -0.3, 8.0, 8.0]]
AMONG = [[1, 1, 1, 0, 0], [0, 0, 0, 1, 1], [1, 1, 1, 0, 0]]
TARGET = [[0, 0, 1, 0, 0], [0, 0, 0, 1, 0], [1, 0, 1, 0, 0]]


def batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One class of three; one of the other set's two; two findings of three."""
    logits = torch.tensor(LOGITS, dtype=torch.float64, requires_grad=True)
    return logits, torch.tensor(TARGET), torch.tensor(AMONG).bool(), torch.tensor([False, False, True])


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def test_losses_by_hand() -> None:
    found = label_losses(*batch())
    first = math.log(math.exp(0.3) + math.exp(-1.2) + math.exp(2.0)) - 2.0
    second = math.log(math.exp(0.7) + math.exp(-0.2)) - 0.7
    third = -(math.log(sigmoid(1.0)) + math.log(1 - sigmoid(0.1)) + math.log(sigmoid(-0.3))) / 3
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx([first, second, third], abs=1e-14)


def test_weights_of_present_findings_by_hand() -> None:
    weights = torch.tensor([3.0, 5.0, 0.5, 7.0, 7.0])
    logits, *labels = batch()
    found = label_losses(logits, *labels, weights)
    third = -(3 * math.log(sigmoid(1.0)) + math.log(1 - sigmoid(0.1)) + 0.5 * math.log(sigmoid(-0.3))) / 3
    assert found[2].item() == pytest.approx(third, abs=1e-14)
    assert found[:2].tolist() == label_losses(*batch())[:2].tolist(), "one right class is not weighed"
    found[2].backward()
    assert logits.grad is not None
    by_hand = [3 * (sigmoid(1.0) - 1) / 3, sigmoid(0.1) / 3, 0.5 * (sigmoid(-0.3) - 1) / 3, 0, 0]
    assert logits.grad[2].tolist() == pytest.approx(by_hand, abs=1e-14)


def test_gradients_by_hand_and_none_outside_the_set() -> None:
    logits, *labels = batch()
    label_losses(logits, *labels).sum().backward()
    assert logits.grad is not None
    total = sum(math.exp(z) for z in LOGITS[0][:3])
    first = [math.exp(z) / total - t for z, t in zip(LOGITS[0][:3], TARGET[0], strict=False)]
    third = [(sigmoid(z) - t) / 3 for z, t in zip(LOGITS[2][:3], TARGET[2], strict=False)]
    assert logits.grad[0].tolist() == pytest.approx([*first, 0, 0], abs=1e-14)
    assert logits.grad[2].tolist() == pytest.approx([*third, 0, 0], abs=1e-14)
    assert (logits.grad[1, :3] == 0).all() and (logits.grad[1, 3:] != 0).all()


def test_far_apart_logits_stay_finite() -> None:
    logits = torch.tensor([[4e4, -4e4]], dtype=torch.bfloat16, requires_grad=True)
    for several in (False, True):
        loss = label_losses(logits, torch.tensor([[0, 1]]), torch.ones(1, 2).bool(), torch.tensor([several]))
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        assert loss.item() == pytest.approx(8e4 if not several else 4e4, rel=1e-2) and gradient.isfinite().all()


def test_right_labels() -> None:
    logits, target, among, several = batch()
    assert labels_right(logits, target, among, several).tolist() == [True, True, False]
    exact = torch.tensor([[1.0, -0.1, 0.3, 5.0, 5.0]])
    assert labels_right(exact, target[2:], among[2:], several[2:]).item()
    none = torch.tensor([[-1.0, -0.1, -0.3, 5.0, 5.0]])
    assert labels_right(none, torch.zeros(1, 5), among[2:], several[2:]).item()
    assert not labels_right(torch.tensor([[3.0, 0, 2, 9, 9]]), target[:1], among[:1], several[:1]).item()
