"""SQ-LLaVA's prototype extractor (Sun et al. 2024): a projection that adds cluster features to patches."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchtune.models.clip._text_encoder import QuickGELU

from medtune.errors import ModelError
from medtune.modules.kept_tensors import KeptTensors


class PrototypeExtractor(nn.Module):
    """Patch features -> features of the decoder's width, each with the prototype that it is most similar to.

    A prototype is the centre of a cluster of patches. The centres begin as averages of neighbouring patches and are
    moved ``iterations`` times: ``centers <- softmax_n(n(c(centers)) n(v(x))^T) f(x)``, where the softmax is over the
    centres. Then each patch l is assigned to its most similar centre a(l) with the weight
    ``s_l = sigmoid(sim_beta + sim_alpha cos(center_a(l), x_l))``, a centre's feature is
    ``out_n = (sum_{l: a(l)=n} s_l f(x_l) + pooled f_n) / (count_n + 1)``, and the result is
    ``mlp(x_l + s_l out_a(l))``. The number of tokens does not change.

    The authors' code makes tensors ``[b, n, l, d]`` in the last two sums. Here they are two matrix products of the
    sparse weights S [b, n, l]: ``S f(x)`` and ``S^T out``, which are the same sums.

    A property of the authors' code is kept, because published weights were trained with it: ``v(x)`` is normalised over
    the tokens of an image and not over its channels (``F.normalize`` of ``[b, d, l]`` along the last axis).

    Names of parameters are those of the published files. ``ln_1`` is in the files and is not used.

    Args:
        dim: width of the patch features.
        out_dim: width of the result.
        prototypes: number of centres; at most the number of patches is useful.
        iterations: number of times that the centres are moved.

    Raises:
        ModelError: if a number is below 1.
    """

    def __init__(self, dim: int, out_dim: int, prototypes: int = 256, iterations: int = 2) -> None:
        super().__init__()
        if prototypes < 1 or iterations < 1:
            raise ModelError(f"prototypes and iterations must be at least 1; got {prototypes} and {iterations}")
        self.prototypes, self.iterations = prototypes, iterations
        self.sim_alpha = nn.Parameter(torch.ones(1, 1, 1))
        self.sim_beta = nn.Parameter(torch.zeros(1, 1, 1))
        self.c = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.f = nn.Linear(dim, dim)
        self.ln_1 = KeptTensors(nn.LayerNorm(dim))
        self.mlp = nn.Sequential(nn.Linear(dim, out_dim), QuickGELU(), nn.Linear(out_dim, out_dim))

    def forward(self, x: Tensor) -> Tensor:
        """Project features [b, l, d] to [b, l, d_out]."""
        feature = self.f(x)
        centers = self._centers(x, feature)
        cosine = F.normalize(centers, dim=-1) @ F.normalize(x, dim=-1).transpose(1, 2)
        similarity = torch.sigmoid(self.sim_beta + self.sim_alpha * cosine)  # [b, n, l]
        assigned = torch.zeros_like(similarity).scatter(1, similarity.argmax(dim=1, keepdim=True), 1.0)
        weights = similarity * assigned
        counts = assigned.sum(dim=-1, keepdim=True)
        gathered = (weights @ feature + _pooled(feature, self.prototypes)) / (counts + 1)
        return self.mlp(x + weights.transpose(1, 2) @ gathered)

    def _centers(self, x: Tensor, feature: Tensor) -> Tensor:
        """Centres [b, n, d] of patches [b, l, d] with features [b, l, d]."""
        value = F.normalize(self.v(x), dim=1).transpose(1, 2)  # over the tokens; see the class
        centers = _pooled(x, self.prototypes)
        for _ in range(self.iterations):
            share = torch.softmax(F.normalize(self.c(centers), dim=-1) @ value, dim=1)
            centers = share @ feature
        return centers


def _pooled(x: Tensor, count: int) -> Tensor:
    """Averages [b, count, d] of neighbouring tokens of [b, l, d]."""
    return F.adaptive_avg_pool1d(x.transpose(1, 2), count).transpose(1, 2)
