"""InternViT and the connector to the decoder, built from torchtune's layers."""

import torch
from torch import Tensor, nn
from torchtune.modules import Fp32LayerNorm, TransformerSelfAttentionLayer

from medtune.models.internvl._shape import SHUFFLE


class LayerScale(nn.Module):
    """A learned factor per channel on a residual branch (CaiT, Touvron et al. 2021, Eq. 4).

    Args:
        dim: channels.
        start: value before training.
    """

    def __init__(self, dim: int, start: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), start))

    def forward(self, x: Tensor) -> Tensor:
        """Scale [..., dim]."""
        return self.gamma * x


class InternViT(nn.Module):
    """The vision transformer of InternVL: class token, learned positions, pre-norm layers, no norm at the end.

    Args:
        layers: the transformer layers, which add no positions and are not causal.
        dim: width.
        image_size: side of a tile in pixels.
        patch_size: side of a patch in pixels.
    """

    def __init__(
        self, layers: list[TransformerSelfAttentionLayer], *, dim: int, image_size: int, patch_size: int
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, dim, kernel_size=patch_size, stride=patch_size)
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim) * dim**-0.5)
        self.positions = nn.Parameter(torch.randn(1, (image_size // patch_size) ** 2 + 1, dim) * dim**-0.5)
        self.layers = nn.ModuleList(layers)

    def forward(self, images: Tensor) -> Tensor:
        """Tiles [n, 3, h, w] -> patch features [n, patches, dim] in row-major order, the class token dropped."""
        patches = self.conv(images).flatten(2).transpose(1, 2)
        h = torch.cat([self.cls_token.expand(len(images), -1, -1), patches], dim=1) + self.positions
        for layer in self.layers:
            h = layer(h)
        return h[:, 1:]


class Connector(nn.Module):
    """Pixel shuffle and InternVL's MLP: blocks of 2 x 2 patches become features of the decoder's width.

    Args:
        vision_dim: width of a patch feature.
        dim: width of the decoder.
    """

    def __init__(self, vision_dim: int, dim: int) -> None:
        super().__init__()
        wide = vision_dim * SHUFFLE**2
        self.norm = Fp32LayerNorm(wide)
        self.linear_1 = nn.Linear(wide, dim)
        self.act = nn.GELU()
        self.linear_2 = nn.Linear(dim, dim)

    def forward(self, patches: Tensor) -> Tensor:
        """Patch features [n, patches, vision_dim] -> [n, patches / 4, dim]."""
        return self.linear_2(self.act(self.linear_1(self.norm(pixel_shuffle(patches)))))


def pixel_shuffle(patches: Tensor) -> Tensor:
    """Join the channels of neighbouring patches (InternVL 1.5, Chen et al. 2024, section 3.1; ``ps_version`` v2).

    Args:
        patches: [n, g * g, c], row-major, g even.

    Returns:
        [n, (g / 2)^2, 4 c], row-major over blocks of 2 x 2 patches; the channels of a block are those of its upper
        left, upper right, lower left and lower right patch, in this order.
    """
    n, count, channels = patches.shape
    side = round(count**0.5) // SHUFFLE
    blocks = patches.view(n, side, SHUFFLE, side, SHUFFLE, channels)
    return blocks.permute(0, 1, 3, 2, 4, 5).reshape(n, side**2, SHUFFLE**2 * channels)
