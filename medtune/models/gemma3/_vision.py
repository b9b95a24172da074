"""SigLIP's vision transformer and Gemma 3's projection to the decoder, built from torchtune's layers."""

import torch
from torch import Tensor, nn
from torchtune.models.gemma.rms_norm import GemmaRMSNorm
from torchtune.modules import Fp32LayerNorm, TransformerSelfAttentionLayer


class SiglipTower(nn.Module):
    """SigLIP's vision transformer (Zhai et al. 2023): learned positions, pre-norm layers, a norm at the end.

    There is no class token, and the attention pooling of the published SigLIP is left out, as in Gemma 3.

    Args:
        layers: the transformer layers, which add no positions and are not causal.
        dim: width.
        patches: patches of an image.
        patch_size: side of a patch in pixels.
        eps: epsilon of the last norm.
    """

    def __init__(
        self, layers: list[TransformerSelfAttentionLayer], *, dim: int, patches: int, patch_size: int, eps: float
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, dim, kernel_size=patch_size, stride=patch_size)
        self.positions = nn.Parameter(torch.randn(patches, dim) * dim**-0.5)
        self.layers = nn.ModuleList(layers)
        self.norm = Fp32LayerNorm(dim, eps=eps)

    def forward(self, images: Tensor) -> Tensor:
        """Images [n, 3, h, w] -> patch features [n, patches, dim] in row-major order."""
        h = self.conv(images).flatten(2).transpose(1, 2) + self.positions
        for layer in self.layers:
            h = layer(h)
        return self.norm(h)


class Projection(nn.Module):
    """Patches averaged in squares, normed, and mapped to the decoder's width, without a bias.

    The weight is [in, out], as in the published files; PEFT's adapters cannot be put on it, because it is no linear
    layer there.

    Args:
        vision_dim: width of a patch feature.
        dim: width of the decoder.
        side: features along one side of an image.
        eps: epsilon of the norm.
    """

    def __init__(self, vision_dim: int, dim: int, *, side: int, eps: float) -> None:
        super().__init__()
        self.side = side
        self.norm = GemmaRMSNorm(vision_dim, eps=eps)
        self.weight = nn.Parameter(torch.randn(vision_dim, dim) * vision_dim**-0.5)

    def forward(self, patches: Tensor) -> Tensor:
        """Patch features [n, patches, vision_dim] -> [n, side^2, dim], both in row-major order."""
        n, count, width = patches.shape
        grid = round(count**0.5)
        square = patches.transpose(1, 2).reshape(n, width, grid, grid)
        pooled = nn.functional.avg_pool2d(square, grid // self.side)
        return self.norm(pooled.flatten(2).transpose(1, 2)) @ self.weight
