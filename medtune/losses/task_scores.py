"""Losses of the scores that a text gets for each of several labels."""

import torch
import torch.nn.functional as F
from torch import Tensor


def focal_losses(logits: Tensor, targets: Tensor, alpha: float = -1.0, gamma: float = 1.0) -> Tensor:
    """Return the focal loss of each score (Lin et al. 2017, equation 5), each label on its own.

    With ``p = sigmoid(z)``, and ``p_t = p`` where the target is 1 and ``1 - p`` where it is 0::

        FL = -a_t (1 - p_t)^gamma log p_t

    ``a_t`` is ``alpha`` where the target is 1 and ``1 - alpha`` where it is 0; a negative alpha means 1 everywhere.
    **With alpha = 1, as ME-VLIP gives it, every negative has the weight 0**: no gradient lowers a score, and the loss
    is smallest if every label has the probability 1, whatever the text says.

    Args:
        logits: z, any shape.
        targets: from 0 to 1, same shape; a target between them mixes both, as in the reference of RetinaNet.
        alpha: from 0 to 1 weighs positives against negatives; negative: off.
        gamma: 0 is binary cross-entropy; a higher value lowers the weight of scores that are already right.

    Returns:
        The loss of each score, in nats, in fp64.
    """
    logits, targets = logits.double(), targets.double()
    probability = logits.sigmoid()
    right = probability * targets + (1 - probability) * (1 - targets)
    losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none") * (1 - right) ** gamma
    if alpha >= 0:
        losses = losses * (alpha * targets + (1 - alpha) * (1 - targets))
    return losses


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return ``-sum_k t_k log softmax(z)_k`` for each row.

    Args:
        logits: z, [b, K].
        targets: t, [b, K], each row a distribution over the labels; a uniform row prefers no label.

    Returns:
        [b] in nats, in fp64.
    """
    return -(targets.double() * torch.log_softmax(logits.double(), dim=-1)).sum(dim=-1)
