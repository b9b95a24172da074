"""Response distribution alignment (VITask, Eq. 3): the model without an exemplar learns from the model with one."""

import torch
import torch.nn.functional as F
from torch import Tensor

from medtune.losses.cross_entropy import IGNORE_INDEX


def response_alignment(
    student: Tensor, teacher: Tensor, targets: Tensor, detach: bool = True, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``sum_t KL(p_t || q_t)``; p is the model without the exemplar (student), q the model with it (teacher).

    The student comes first, as in the paper: ``sum_v p(v) (log p(v) - log q(v))`` at each response token. This is the
    mode-seeking KL divergence: it penalises tokens that the student finds likely and the teacher unlikely.

    Args:
        student: ``[..., V]`` logits without exemplar, of any float type; each position is computed in fp32 (fp64 stays
            fp64) and the sum is accumulated in fp64.
        teacher: ``[..., V]`` logits with exemplar, of the same response tokens.
        targets: ``[...]`` ids, ``IGNORE_INDEX`` where a position is not a response token.
        detach: No gradient flows to the teacher. False is the paper's variant RDA* (Figure 3).
        weights: ``[...]`` weight of each position, fp64; None is 1 everywhere.

    Returns:
        The sum in nats, and the number of response tokens.
    """
    student, teacher = _log_probabilities(student), _log_probabilities(teacher)
    if detach:
        teacher = teacher.detach()
    counted = targets != IGNORE_INDEX
    divergence = (student.exp() * (student - teacher)).sum(-1)
    divergence = divergence.masked_fill(~counted, 0.0).double()
    return (divergence if weights is None else divergence * weights).sum(), counted.sum()


def _log_probabilities(logits: Tensor) -> Tensor:
    return F.log_softmax(logits if logits.dtype == torch.float64 else logits.float(), dim=-1)
