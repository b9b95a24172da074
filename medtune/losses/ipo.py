"""Identity preference optimization: a squared loss with a finite optimum (Azar et al. 2023, Eq. 17)."""

from torch import Tensor

from medtune.losses.dpo import log_ratio_margin


def ipo(
    chosen: Tensor, rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, beta: float = 0.1
) -> Tensor:
    """``(h - 1 / (2 beta))^2``, ``h = (c - c_ref) - (r - r_ref)``; beta is the paper's tau.

    Args:
        chosen: log-probability of each chosen answer under the policy, [b] in nats: summed over its tokens, as in the
            paper, or their mean, as its authors advise for answers of different lengths.
        rejected: the same of the rejected answers.
        reference_chosen: the same of the chosen answers under the reference.
        reference_rejected: the same of the rejected answers under the reference.
        beta: strength of the KL penalty; above 0.

    Returns:
        The losses of the pairs, [b].
    """
    return (log_ratio_margin(chosen, rejected, reference_chosen, reference_rejected) - 1 / (2 * beta)) ** 2
