"""The proxy instruction of InstFree (arXiv text in 3.3): N continuous vectors in place of a written instruction."""

import torch
from torch import Tensor, nn


class ProxyInstruction(nn.Module):
    """``t = {t_1, ..., t_N}``; each vector has the width of a word embedding (InstFree, 3.3.1).

    The vectors stay in fp32 for every dtype of the model: with bf16 and a learning rate of 2e-5, most components would
    never change. They are cast when they enter the model.

    Args:
        count: N, the number of vectors.
        dim: Width of the word embeddings.
        sigma: Standard deviation of the initialisation ``t ~ N(0, sigma^2)``. The paper gives no value; the official
            code uses 0.0208, hence the default.
        seed: Seed of the initialisation. It has its own random generator, so that it does not depend on other random
            numbers.
    """

    def __init__(self, count: int, dim: int, sigma: float = 0.02, seed: int = 0) -> None:
        super().__init__()
        if count < 1:
            raise ValueError(f"a proxy instruction needs at least one vector, got {count}")
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(sigma * torch.randn(count, dim, generator=generator, dtype=torch.float32))

    def forward(self, batch_size: int) -> Tensor:
        """Return the vectors for a batch: ``[batch_size * N, dim]``, one instruction after the other."""
        return self.weight.repeat(batch_size, 1)


def placeholder_mask(tokens: Tensor, placeholder_id: int, count: int) -> Tensor:
    """Return the positions of the proxy's vectors: the first ``count`` placeholders of every row.

    Later placeholders are text (a report may contain the same character) and stay as they are.

    Args:
        tokens: ``[b, s]`` ids.
        placeholder_id: Id that the prompt contains N times.
        count: N.

    Returns:
        ``[b, s]`` bool with exactly ``count`` True in every row.

    Raises:
        ValueError: If a row has fewer placeholders.
    """
    candidates = tokens == placeholder_id
    mask = candidates & (candidates.cumsum(dim=1) <= count)
    if not bool((mask.sum(dim=1) == count).all()):
        raise ValueError(
            f"a prompt holds fewer than {count} placeholders (id {placeholder_id}) for the proxy instruction"
        )
    return mask
