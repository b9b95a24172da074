"""The SFT term beside a preference loss, against chosen answers that become less likely (Pang et al. 2024, Eq. 2)."""

from torch import Tensor


def chosen_likelihood(chosen: Tensor, lengths: Tensor) -> Tensor:
    """``- log p(chosen) / length``: the mean negative log-likelihood of each chosen answer's tokens.

    Args:
        chosen: log-probability of each chosen answer under the policy, summed over its tokens, [b] in nats.
        lengths: number of these tokens, [b]; 0 gives 0.

    Returns:
        [b].
    """
    return -chosen / lengths.clamp(min=1)
