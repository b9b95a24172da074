import math

import pytest
import torch
from torchvision.ops import sigmoid_focal_loss

from medtune.losses.task_scores import focal_losses, soft_cross_entropy

LOGITS = torch.tensor([[2.0, -1.5, 0.25], [-30.0, 30.0, 0.0], [0.1, -0.2, 4.0]], dtype=torch.float64)
TARGETS = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)


def by_hand(z: float, target: float, alpha: float, gamma: float) -> float:
    """Equation 5 of the focal loss for one score, with probabilities written out."""
    p = 1 / (1 + math.exp(-z))
    p_t = p if target == 1 else 1 - p
    a_t = 1.0 if alpha < 0 else alpha if target == 1 else 1 - alpha
    return -a_t * (1 - p_t) ** gamma * math.log(p_t)


def gradient_by_hand(z: float, target: float, alpha: float, gamma: float) -> float:
    """Its derivative: with s = 1 for a positive and -1 for a negative, d p_t / dz = s p_t (1 - p_t)."""
    p = 1 / (1 + math.exp(-z))
    p_t, sign = (p, 1) if target == 1 else (1 - p, -1)
    a_t = 1.0 if alpha < 0 else alpha if target == 1 else 1 - alpha
    return a_t * sign * (1 - p_t) ** gamma * (gamma * p_t * math.log(p_t) - (1 - p_t))


@pytest.mark.parametrize(("alpha", "gamma"), [(-1.0, 1.0), (-1.0, 0.0), (0.25, 2.0), (0.75, 1.0), (1.0, 1.0)])
def test_focal_loss_and_gradient_follow_the_equation(alpha: float, gamma: float) -> None:
    logits = LOGITS[[0, 2]].clone().requires_grad_()
    losses = focal_losses(logits, TARGETS[[0, 2]], alpha, gamma)
    losses.sum().backward()
    assert losses.dtype == torch.float64 and logits.grad is not None
    for row, (scores, targets) in enumerate(zip(LOGITS[[0, 2]].tolist(), TARGETS[[0, 2]].tolist(), strict=True)):
        for at, (z, target) in enumerate(zip(scores, targets, strict=True)):
            assert losses[row, at].item() == pytest.approx(by_hand(z, target, alpha, gamma), abs=1e-13)
            assert logits.grad[row, at].item() == pytest.approx(gradient_by_hand(z, target, alpha, gamma), abs=1e-13)


@pytest.mark.parametrize(("alpha", "gamma"), [(-1.0, 1.0), (0.25, 2.0), (1.0, 1.0), (-1.0, 0.0), (0.5, 3.5)])
def test_focal_loss_is_that_of_torchvision(alpha: float, gamma: float) -> None:
    own, reference = LOGITS.clone().requires_grad_(), LOGITS.clone().requires_grad_()
    found = focal_losses(own, TARGETS, alpha, gamma)
    expected = sigmoid_focal_loss(reference, TARGETS, alpha, gamma, reduction="none")
    torch.testing.assert_close(found, expected, atol=1e-14, rtol=0)
    found.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(own.grad, reference.grad, atol=1e-14, rtol=0)


def test_without_alpha_and_gamma_it_is_binary_cross_entropy() -> None:
    expected = torch.nn.functional.binary_cross_entropy_with_logits(LOGITS, TARGETS, reduction="none")
    torch.testing.assert_close(focal_losses(LOGITS, TARGETS, -1.0, 0.0), expected, atol=0, rtol=0)


def test_alpha_of_one_gives_negatives_no_gradient_and_off_gives_them_one() -> None:
    for alpha, learns in ((1.0, False), (-1.0, True)):
        logits = LOGITS[:1].clone().requires_grad_()
        focal_losses(logits, TARGETS[:1], alpha, 1.0).sum().backward()
        assert logits.grad is not None
        assert logits.grad[0, 0] < 0  # the positive is raised in both
        assert (logits.grad[0, 1:] > 0).all() if learns else (logits.grad[0, 1:] == 0).all()


def test_with_alpha_of_one_the_best_scores_are_high_for_every_label() -> None:
    free = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([free], lr=5.0)
    for step in range(600):
        targets = torch.eye(3, dtype=torch.float64)[[step % 3]]  # each label is right in a third of the texts
        optimizer.zero_grad()
        focal_losses(free, targets, 1.0, 1.0).sum().backward()
        optimizer.step()
    assert (free.detach().sigmoid() > 0.98).all()


def test_soft_cross_entropy_follows_the_equation() -> None:
    targets = torch.tensor([[0.0, 1.0, 0.0], [0.2, 0.3, 0.5], [1 / 3] * 3], dtype=torch.float64)
    logits = LOGITS.clone().requires_grad_()
    losses = soft_cross_entropy(logits, targets)
    losses.sum().backward()
    for row, (scores, shares) in enumerate(zip(LOGITS.tolist(), targets.tolist(), strict=True)):
        total = sum(math.exp(z) for z in scores)
        expected = -sum(t * math.log(math.exp(z) / total) for t, z in zip(shares, scores, strict=True) if t)
        assert losses[row].item() == pytest.approx(expected, abs=1e-12)
        for at, (z, t) in enumerate(zip(scores, shares, strict=True)):
            assert logits.grad[row, at].item() == pytest.approx(math.exp(z) / total - t, abs=1e-13)


def test_a_uniform_target_is_met_by_equal_scores() -> None:
    logits = torch.full((1, 7), 1.25, dtype=torch.float64, requires_grad=True)
    soft_cross_entropy(logits, torch.full((1, 7), 1 / 7, dtype=torch.float64)).sum().backward()
    assert logits.grad.abs().max() < 1e-15


def test_scores_of_any_size_give_finite_losses_and_gradients() -> None:
    logits = torch.tensor([[800.0, -800.0, 0.0]], dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64)
    total = focal_losses(logits, targets).sum() + soft_cross_entropy(logits, targets).sum()
    total.backward()
    assert torch.isfinite(total) and torch.isfinite(logits.grad).all()
