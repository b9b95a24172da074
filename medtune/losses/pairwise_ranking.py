"""Losses on the scores of a preferred and a rejected sample (BioMed-VITAL, Sec. 3.2)."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

RankingLoss = Literal["logistic", "literal", "hinge"]


def ranking_losses(preferred: Tensor, rejected: Tensor, loss: RankingLoss = "logistic", margin: float = 1.0) -> Tensor:
    r"""Return the loss of each pair, from raw scores ``f``.

    ``logistic`` is :math:`-\log\sigma(f(x_i) - f(x_j))` for a preferred sample i and a rejected one j, as Bradley and
    Terry have it. ``literal`` is what Eq. 1 says with (z_i, z_j) = (1, 0), :math:`-\log\sigma(f(x_i))`: the rejected
    sample has no part in it, and a large constant f makes it 0. ``hinge`` is what the official code trains with,
    :math:`\max(0, m - (\sigma(f(x_i)) - \sigma(f(x_j))))`; with its margin of 1 it never reaches 0.

    Args:
        preferred: [n], scores of the preferred samples.
        rejected: [n], scores of the rejected samples.
        loss: which of the three.
        margin: m, of ``hinge`` only.

    Returns:
        [n], in the type of the scores; each at least 0.
    """
    if loss == "logistic":
        return functional.softplus(rejected - preferred)
    if loss == "literal":
        # The term of the rejected sample has the factor 0; it stays, so that its gradient is exactly 0.
        return functional.softplus(-preferred) + 0.0 * rejected
    return torch.relu(margin - (preferred.sigmoid() - rejected.sigmoid()))
