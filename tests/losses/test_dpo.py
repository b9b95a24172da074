"""DPO, IPO and the SFT term against their papers' formulas and against TRL's, forward and backward, in fp64."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from medtune.losses.chosen_likelihood import chosen_likelihood
from medtune.losses.dpo import dpo, preference_metrics
from medtune.losses.ipo import ipo

BETA = 0.3


def pairs(seed: int = 1) -> list[Tensor]:
    """Chosen, rejected, and both under the reference."""
    generator = torch.Generator().manual_seed(seed)
    return [(-20 * torch.rand(5, generator=generator, dtype=torch.float64)).requires_grad_() for _ in range(4)]


def by_hand(sums: list[Tensor], smoothing: float) -> tuple[list[float], list[list[float]]]:
    """Losses of Eq. 7 with cDPO's smoothing, and their derivatives by chosen and rejected (Eq. 8 of the DPO paper)."""
    losses, slopes = [], []
    for c, r, reference_c, reference_r in zip(*([float(x) for x in s] for s in sums), strict=True):
        h = BETA * ((c - reference_c) - (r - reference_r))
        right, wrong = 1 / (1 + math.exp(-h)), 1 / (1 + math.exp(h))
        losses.append(-(1 - smoothing) * math.log(right) - smoothing * math.log(wrong))
        slope = BETA * (-(1 - smoothing) * wrong + smoothing * right)
        slopes.append([slope, -slope])
    return losses, slopes


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_dpo_is_equation_7_and_its_gradient_equation_8(smoothing: float) -> None:
    sums = pairs()
    losses, slopes = by_hand(sums, smoothing)
    found = dpo(*sums, BETA, smoothing)
    assert found.tolist() == pytest.approx(losses, rel=1e-12)
    found.sum().backward()
    for number, slope in enumerate(slopes):
        assert [sums[0].grad[number].item(), sums[1].grad[number].item()] == pytest.approx(slope, rel=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_dpo_is_trls_sigmoid_loss(smoothing: float) -> None:
    """TRL: chosen_scores and rejected_scores are log-ratios to the reference, delta their difference."""
    ours, theirs = pairs(2), pairs(2)
    delta = (theirs[0] - theirs[2]) - (theirs[1] - theirs[3])
    expected = -F.logsigmoid(BETA * delta) * (1 - smoothing) - F.logsigmoid(-BETA * delta) * smoothing
    found = dpo(*ours, BETA, smoothing)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    weights = torch.arange(1.0, 6, dtype=torch.float64)
    (found @ weights).backward()
    (expected @ weights).backward()
    for first, second in zip(ours, theirs, strict=True):
        torch.testing.assert_close(first.grad, second.grad, rtol=0, atol=1e-14)


def test_a_policy_that_is_its_reference_has_a_loss_of_ln_2() -> None:
    chosen, rejected, *_ = pairs()
    assert dpo(chosen, rejected, chosen, rejected, BETA).tolist() == [math.log(2)] * 5
    assert dpo(chosen, rejected, chosen, rejected, BETA, 0.3).tolist() == pytest.approx([math.log(2)] * 5, abs=1e-15)


def test_a_margin_that_is_far_off_is_finite() -> None:
    far = torch.tensor([-2e5, 0.0], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(2, dtype=torch.float64)
    loss = dpo(far, zero, zero, zero, 1.0)
    loss.sum().backward()
    assert loss.tolist() == [2e5, math.log(2)] and far.grad.tolist() == [-1.0, -0.5]


def test_ipo_is_equation_17() -> None:
    sums = pairs(3)
    found = ipo(*sums, BETA)
    expected, slopes = [], []
    for c, r, reference_c, reference_r in zip(*([float(x) for x in s] for s in sums), strict=True):
        # log of p(c) p_ref(r) / (p(r) p_ref(c)), from the probabilities themselves
        h = math.log(math.exp(c) * math.exp(reference_r) / (math.exp(r) * math.exp(reference_c)))
        expected.append((h - 0.5 / BETA) ** 2)
        slopes.append(2 * (h - 0.5 / BETA))
    assert found.tolist() == pytest.approx(expected, rel=1e-9)
    found.sum().backward()
    assert sums[0].grad.tolist() == pytest.approx(slopes, rel=1e-9)
    assert sums[1].grad.tolist() == pytest.approx([-slope for slope in slopes], rel=1e-9)


def test_ipo_is_trls() -> None:
    """TRL: ``(delta - 1 / (2 * beta)) ** 2`` of log-ratios that are means over tokens."""
    sums, lengths = pairs(4), (torch.tensor([1, 2, 3, 4, 5]), torch.tensor([5, 4, 3, 2, 1]))
    means = [value / lengths[number % 2] for number, value in enumerate(sums)]
    delta = (means[0] - means[2]) - (means[1] - means[3])
    torch.testing.assert_close(ipo(*means, BETA), (delta - 1 / (2 * BETA)) ** 2, rtol=0, atol=1e-13)


def test_the_sft_term_is_the_mean_over_the_tokens_of_each_chosen_answer() -> None:
    chosen = torch.tensor([-6.0, -1.5, 0.0], dtype=torch.float64, requires_grad=True)
    found = chosen_likelihood(chosen, torch.tensor([3, 1, 0]))
    assert found.tolist() == [2.0, 1.5, 0.0]
    found.sum().backward()
    assert chosen.grad.tolist() == pytest.approx([-1 / 3, -1, -1])


def test_the_metrics_are_those_of_trl() -> None:
    chosen, rejected, reference_chosen, reference_rejected = pairs(5)
    found = preference_metrics(chosen, rejected, reference_chosen, reference_rejected, BETA)
    rewards = [BETA * (chosen - reference_chosen), BETA * (rejected - reference_rejected)]
    assert found["rewards/chosen"].tolist() == rewards[0].tolist()
    assert found["rewards/rejected"].tolist() == rewards[1].tolist()
    assert found["rewards/margins"].tolist() == (rewards[0] - rewards[1]).tolist()
    assert found["rewards/accuracies"].tolist() == [float(a > b) for a, b in zip(*rewards, strict=True)]
    assert found["logps/chosen"].tolist() == chosen.tolist() and found["logps/rejected"].tolist() == rejected.tolist()
    assert not any(value.requires_grad for value in found.values())
    assert 0 < found["rewards/accuracies"].sum() < 5
