"""Contrastive response tuning (VITask, Eq. 5 and 6): the response must follow from this image, not from another."""

import torch
from torch import Tensor

from medtune.losses.cross_entropy import token_cross_entropy


def contrastive_response(
    positive: Tensor, negative: Tensor, targets: Tensor, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``-sum_t log softmax(y_t^pos - y_t^neg)[response_t]``, the cross-entropy of the margin distribution.

    The difference is computed in fp32 (fp64 stays fp64), because bf16 would round it to three digits. Gradients flow to
    both logits; the paper detaches neither.

    Args:
        positive: ``[..., V]`` logits of the response tokens given their own image.
        negative: ``[..., V]`` logits of the same tokens given another image.
        targets: ``[...]`` ids, ``IGNORE_INDEX`` where a position is not a response token or has no negative.
        weights: ``[...]`` weight of each position, fp64; None is 1 everywhere.

    Returns:
        The sum in nats, accumulated in fp64, and the number of positions that count.
    """
    return token_cross_entropy(_wide(positive) - _wide(negative), targets, weights)


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
