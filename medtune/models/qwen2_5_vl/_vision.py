"""The vision tower of Qwen2.5-VL (Bai et al. 2025, section 2.1), for images of any size, built from torchtune's layers.

Published code sorts an image's patches by windows and masks a sequence of all patches of a batch. Here layers with
windows run on rows of one window each, and layers with full attention on rows of one image each, so that nothing is
computed between windows or images.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchtune.modules import RMSNorm, TransformerSelfAttentionLayer

from medtune.models.common.early_fusion import ImageEncoder
from medtune.models.qwen2_5_vl._positions import rotate
from medtune.models.qwen2_5_vl._shape import FRAMES, MERGE

PATCHES = MERGE**2  # of one block, which becomes one feature
NORM_EPS = 1e-6
_ROPE_BASE = 10_000.0


class AxialRope(nn.Module):
    """Rotates heads in fp32 by the table that is given as ``input_pos``."""

    def forward(self, x: Tensor, input_pos: Tensor) -> Tensor:
        """Heads [b, s, heads, d], table [b, s, 2 d] from :func:`axial_table`."""
        return rotate(x.float(), input_pos).to(x.dtype)


def axial_table(places: Tensor, head_dim: int) -> Tensor:
    """Cosines and sines of patches: a quarter of the angles for rows, a quarter for columns, repeated for the halves.

    Args:
        places: row and column of each patch, [..., 2].
        head_dim: d, width of a head.

    Returns:
        [..., 2 d] in fp32.
    """
    spatial = head_dim // 2
    rates = _ROPE_BASE ** -(torch.arange(0, spatial, 2, device=places.device).float() / spatial)
    angles = (places[..., None].float() * rates).flatten(-2)
    angles = torch.cat([angles, angles], dim=-1)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


@dataclass(frozen=True)
class Groups:
    """Blocks of patches as rows of one group each: of one window, or of one image.

    Attributes:
        size: number of groups, and blocks of the largest one, m.
        index: [n], the place of each block among all ``groups * m``.
        mask: [groups, m * PATCHES, m * PATCHES], True at patches that exist; None if all groups are full.
    """

    size: tuple[int, int]
    index: Tensor
    mask: Tensor | None

    @staticmethod
    def of(numbers: Tensor, device: torch.device) -> "Groups":
        """Groups of blocks with the same number, [n]."""
        _, group, count = numbers.unique(return_inverse=True, return_counts=True)
        order = group.argsort(stable=True)
        slot = torch.empty_like(group)
        slot[order] = torch.arange(len(group)) - (count.cumsum(0) - count).repeat_interleave(count)
        size = len(count), int(count.max())
        real = (torch.arange(size[1]) < count[:, None]).repeat_interleave(PATCHES, dim=1)
        # The mask's rows are alike, so it is expanded on the device and not stored for each query.
        mask = None if bool(real.all()) else real.to(device)[:, None, :].expand(-1, real.shape[1], -1)
        return Groups(size, (group * size[1] + slot).to(device), mask)

    def spread(self, blocks: Tensor) -> Tensor:
        """Blocks [n, PATCHES, d] -> [groups, m * PATCHES, d], zero where there is none."""
        room = blocks.new_zeros(self.size[0] * self.size[1], *blocks.shape[1:])
        return room.index_copy(0, self.index, blocks).unflatten(0, self.size).flatten(1, 2)

    def gather(self, rows: Tensor) -> Tensor:
        """The inverse of :meth:`spread`."""
        return rows.unflatten(1, (-1, PATCHES)).flatten(0, 1)[self.index]


def block_places(grids: Sequence[tuple[int, int]], window: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where the blocks of several images stand, image by image and row by row; on the CPU.

    Args:
        grids: rows and columns of blocks of each image.
        window: blocks along a side of a window; windows at the right and lower edge are smaller.

    Returns:
        Row and column of each patch [n, PATCHES, 2], the number of the block's image [n], and of its window [n].
    """
    places, images, windows, first = [], [], [], 0
    for number, (height, width) in enumerate(grids):
        block = torch.arange(height * width)
        row, column = block // width, block % width
        corner = torch.stack([row, column], dim=-1) * MERGE
        patch = torch.arange(PATCHES)
        places.append(corner[:, None] + torch.stack([patch // MERGE, patch % MERGE], dim=-1))
        images.append(torch.full_like(block, number))
        across = -(-width // window)
        windows.append(first + row // window * across + column // window)
        first += -(-height // window) * across
    return torch.cat(places), torch.cat(images), torch.cat(windows)


class Qwen2_5Vision(nn.Module):
    """The vision tower: patch embedding without bias, pre-norm layers with windows or full attention.

    Args:
        layers: the transformer layers, which rotate by the table that is given as ``input_pos`` and are not causal.
        full_layers: numbers of the layers that attend to the whole image.
        dim: width.
        heads: attention heads.
        patch_size: side of a patch in pixels.
        window: blocks of patches along a side of a window.
    """

    def __init__(
        self,
        layers: list[TransformerSelfAttentionLayer],
        *,
        full_layers: tuple[int, ...],
        dim: int,
        heads: int,
        patch_size: int,
        window: int,
    ) -> None:
        super().__init__()
        # only the weights are used, see `_embed`
        kernel = (FRAMES, patch_size, patch_size)
        self.conv = nn.Conv3d(3, dim, kernel_size=kernel, stride=kernel, bias=False)
        self.layers = nn.ModuleList(layers)
        self.full_layers, self.window = frozenset(full_layers), window
        self.head_dim, self.patch_size = dim // heads, patch_size

    def forward(self, blocks: Tensor, grids: Sequence[tuple[int, int]]) -> Tensor:
        """Patch features.

        Args:
            blocks: [n, 3, side, side], each of ``MERGE x MERGE`` patches; the blocks of each image in row-major order.
            grids: rows and columns of blocks of each image; n in all.

        Returns:
            [n, PATCHES, d], the patches of a block in reading order.
        """
        places, images, windows = block_places(grids, self.window)
        h = self._embed(blocks)
        table = axial_table(places, self.head_dim).to(h.device)
        groups = Groups.of(windows, h.device), Groups.of(images, h.device)
        tables = [group.spread(table) for group in groups]
        for number, layer in enumerate(self.layers):
            full = number in self.full_layers
            group = groups[full]
            h = group.gather(layer(group.spread(h), mask=group.mask, input_pos=tables[full]))
        return h

    def _embed(self, blocks: Tensor) -> Tensor:
        """Blocks [n, 3, side, side] -> embedded patches [n, PATCHES, d].

        Both frames of a still image are the same, so the kernel is summed over time. As a matrix product this is
        faster than a 3D convolution.
        """
        size = self.patch_size
        patches = blocks.unflatten(3, (MERGE, size)).unflatten(2, (MERGE, size)).permute(0, 2, 4, 1, 3, 5)
        return F.linear(patches.flatten(3).flatten(1, 2), self.conv.weight.sum(dim=2).flatten(1))


class Merger(nn.Module):
    """Joins the patches of a block and maps them to the decoder's width: norm, linear, GELU, linear.

    Args:
        vision_dim: width of a patch feature.
        dim: width of the decoder.
    """

    def __init__(self, vision_dim: int, dim: int) -> None:
        super().__init__()
        wide = vision_dim * PATCHES
        self.norm = RMSNorm(vision_dim, eps=NORM_EPS)
        self.linear_1 = nn.Linear(wide, wide)
        self.act = nn.GELU()
        self.linear_2 = nn.Linear(wide, dim)

    def forward(self, patches: Tensor) -> Tensor:
        """[n, PATCHES, vision_dim] -> [n, 1, dim]."""
        return self.linear_2(self.act(self.linear_1(self.norm(patches).flatten(1, 2)))).unsqueeze(1)


class BlockEncoder(ImageEncoder):
    """Vision tower and merger: blocks of images of different sizes -> one feature of the decoder's width each."""

    def forward(self, images: Tensor, grids: Sequence[tuple[int, int]] = ((1, 1),)) -> Tensor:
        """Features [n, 1, d] of blocks [n, 3, side, side]; ``grids`` has rows and columns of each image."""
        return self.projection(self.vision(images, grids))
