"""Direct preference optimization: the loss of a pair, and the numbers that its users watch.

Rafailov et al. 2023, Eq. 7; label smoothing as in cDPO (Mitchell, "A note on DPO with noisy preferences", 2023, Eq. 3).
"""

import torch.nn.functional as F
from torch import Tensor


def dpo(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> Tensor:
    """``-(1 - e) log sigmoid(h) - e log sigmoid(-h)``, ``h = beta ((c - c_ref) - (r - r_ref))``.

    Args:
        chosen: log-probability of each chosen answer under the policy, summed over its tokens, [b] in nats.
        rejected: the same of the rejected answers.
        reference_chosen: the same of the chosen answers under the reference.
        reference_rejected: the same of the rejected answers under the reference.
        beta: strength of the implicit KL penalty.
        label_smoothing: e, the assumed probability that a preference is wrong, in [0, 0.5).

    Returns:
        The losses of the pairs, [b].
    """
    margin = beta * log_ratio_margin(chosen, rejected, reference_chosen, reference_rejected)
    return -(1 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin)


def log_ratio_margin(chosen: Tensor, rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor) -> Tensor:
    """``(c - c_ref) - (r - r_ref)``, [b]: how much more than the reference the policy prefers the chosen answer."""
    return (chosen - reference_chosen) - (rejected - reference_rejected)


def preference_metrics(
    chosen: Tensor, rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, beta: float
) -> dict[str, Tensor]:
    """The usual metrics by pair, [b] each, without gradient.

    ``rewards/chosen`` and ``rewards/rejected`` are the implicit rewards ``beta (log p - log p_ref)`` (Rafailov et al.
    2023, Eq. 5 without the term that is the same for both), ``rewards/margins`` is their difference,
    ``rewards/accuracies`` is 1 where it is above 0, and ``logps/chosen`` and ``logps/rejected`` are the policy's sums.
    """
    rewards = {
        "chosen": beta * (chosen - reference_chosen).detach(),
        "rejected": beta * (rejected - reference_rejected).detach(),
    }
    margins = rewards["chosen"] - rewards["rejected"]
    return {
        "rewards/chosen": rewards["chosen"],
        "rewards/rejected": rewards["rejected"],
        "rewards/margins": margins,
        "rewards/accuracies": (margins > 0).to(margins.dtype),
        "logps/chosen": chosen.detach(),
        "logps/rejected": rejected.detach(),
    }
