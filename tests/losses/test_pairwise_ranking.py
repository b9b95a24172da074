"""The ranking losses against the paper's equations, and that its literal form is degenerate."""

import math

import pytest
import torch

from medtune.losses.pairwise_ranking import ranking_losses

PREFERRED = torch.tensor([0.3, -2.0, 5.0], dtype=torch.float64)
REJECTED = torch.tensor([-1.0, 1.5, 5.0], dtype=torch.float64)


def sigma(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def by_hand(loss: str, i: float, j: float, margin: float = 1.0) -> float:
    if loss == "logistic":  # -z_i log s(f_i - f_j) - z_j log s(f_j - f_i) with (z_i, z_j) = (1, 0)
        return -math.log(sigma(i - j))
    if loss == "literal":  # Eq. 1: -z_i log s(f_i) - z_j log s(f_j)
        return -1.0 * math.log(sigma(i)) - 0.0 * math.log(sigma(j))
    return max(0.0, margin - (sigma(i) - sigma(j)))


@pytest.mark.parametrize("loss", ["logistic", "literal", "hinge"])
def test_a_loss_is_the_equation_written_out(loss):
    found = ranking_losses(PREFERRED, REJECTED, loss)
    expected = [by_hand(loss, i, j) for i, j in zip(PREFERRED.tolist(), REJECTED.tolist(), strict=True)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-12, rtol=0)


def test_the_hinge_is_torchs_margin_ranking_loss_on_the_sigmoids():
    reference = torch.nn.functional.margin_ranking_loss(
        PREFERRED.sigmoid(), REJECTED.sigmoid(), torch.ones(3, dtype=torch.float64), margin=0.4, reduction="none"
    )
    torch.testing.assert_close(ranking_losses(PREFERRED, REJECTED, "hinge", 0.4), reference, atol=1e-15, rtol=0)


@pytest.mark.parametrize("loss", ["logistic", "literal", "hinge"])
def test_scores_of_any_size_give_a_finite_loss_and_gradient(loss):
    preferred = torch.tensor([1e4, -1e4, 0.0], requires_grad=True)
    rejected = torch.tensor([-1e4, 1e4, 0.0], requires_grad=True)
    found = ranking_losses(preferred, rejected, loss)
    found.sum().backward()
    assert all(torch.isfinite(value).all() for value in (found, preferred.grad, rejected.grad))


def gradients(loss, preferred, rejected):
    preferred, rejected = (torch.tensor(values, dtype=torch.float64) for values in (preferred, rejected))
    preferred.requires_grad_(), rejected.requires_grad_()
    ranking_losses(preferred, rejected, loss).sum().backward()
    return preferred.grad, rejected.grad


def test_the_literal_loss_is_degenerate_a_large_constant_drives_it_to_0_and_no_rejected_sample_gets_a_gradient():
    constant = torch.full((4,), 60.0, dtype=torch.float64)
    assert ranking_losses(constant, constant, "literal").max() < 1e-20, "every pair is a tie, and the loss is 0"
    assert ranking_losses(constant, constant, "logistic").tolist() == pytest.approx([math.log(2)] * 4)
    preferred, rejected = gradients("literal", [0.0, 1.0], [3.0, -3.0])
    assert rejected.tolist() == [0.0, 0.0] and (preferred < 0).all(), "it pushes every preferred score up, and no other"
    wrong, right = gradients("logistic", [0.0], [3.0])
    assert wrong.item() == pytest.approx(-right.item()) and right.item() > 0.9


def test_a_model_that_cannot_tell_samples_apart_satisfies_the_literal_loss_alone():
    """A single bias is trained: the score is the same for every sample."""
    left = {}
    for loss in ("literal", "logistic"):
        bias = torch.zeros(1, requires_grad=True, dtype=torch.float64)
        optimizer = torch.optim.SGD([bias], lr=50.0)
        for _ in range(400):
            optimizer.zero_grad()
            ranking_losses(bias.expand(8), bias.expand(8), loss).mean().backward()
            optimizer.step()
        left[loss] = ranking_losses(bias.expand(8), bias.expand(8), loss).mean().item()
    assert left["literal"] < 1e-3 and left["logistic"] == pytest.approx(math.log(2))
