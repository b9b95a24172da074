"""Losses of class labels; each image is classified among the classes of its own set."""

import torch
import torch.nn.functional as F
from torch import Tensor


def label_losses(
    logits: Tensor, target: Tensor, among: Tensor, multi_label: Tensor, pos_weight: Tensor | None = None
) -> Tensor:
    """Return the loss of each image over the ``c`` classes of its set; other logits are ignored and get no gradient.

    With one right class ``y``: cross-entropy ``log sum_k exp z_k - z_y``. With several findings: binary cross-entropy,
    mean over the set's classes, ``-1/c sum_k [p_k t_k log sigmoid(z_k) + (1 - t_k) log(1 - sigmoid(z_k))]``, with
    ``p_k = 1`` unless ``pos_weight`` is given. An ordinal label is treated as an unordered class.

    Args:
        logits: [b, C], for the classes of all sets.
        target: [b, C], 1 at the right classes and 0 elsewhere.
        among: [b, C], True at the classes of the image's set.
        multi_label: [b], True where several classes may be right.
        pos_weight: [C], the weight of a finding that is present; it has no effect on images with one right class.

    Returns:
        [b] in nats, in fp64.
    """
    logits, target = logits.double(), target.double()
    single = logits.masked_fill(~among, -torch.inf).logsumexp(dim=1) - (logits * target).sum(dim=1)
    positive = None if pos_weight is None else pos_weight.double()
    findings = F.binary_cross_entropy_with_logits(
        logits, target, weight=among.double(), reduction="none", pos_weight=positive
    )
    return torch.where(multi_label, findings.sum(dim=1) / among.sum(dim=1), single)


@torch.no_grad()
def labels_right(logits: Tensor, target: Tensor, among: Tensor, multi_label: Tensor) -> Tensor:
    """Return whether each image's labels are predicted: the most likely class, or all findings (positive logits).

    Args:
        logits: all arguments as for :func:`label_losses`.
        target: [b, C].
        among: [b, C].
        multi_label: [b].

    Returns:
        [b] booleans.
    """
    best = logits.masked_fill(~among, -torch.inf).argmax(dim=1, keepdim=True)
    exact = (((logits >= 0) == target.bool()) | ~among).all(dim=1)
    return torch.where(multi_label, exact, target.gather(1, best).squeeze(1).bool())
