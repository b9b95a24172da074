"""The vision tower of Qwen2.5-VL (Bai et al. 2025, section 2.1), for images of any size, built from torchtune's layers.

The patches of a batch are one row without padding. Its order puts groups of equal length (windows, or whole images)
side by side, so that attention reads each length as one batch without a mask, and nothing is computed between windows
or images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchtune.modules import MultiHeadAttention, RMSNorm, TransformerSelfAttentionLayer

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


@dataclass
class Runs:
    """How a row is made of groups: run after run of (number of groups, patches in each).

    It takes the place of a mask in torchtune's layers. A compiler looks into tuples and frozen classes, and would build
    a program for each number of runs.
    """

    sizes: tuple[tuple[int, int], ...]


class GroupedAttention(MultiHeadAttention):
    """torchtune's attention, within groups of one row: its ``mask`` is :class:`Runs`, and its batch size is 1."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._attention_call = attend_within


@torch.compiler.disable
def attend_within(
    query: Tensor, key: Tensor, value: Tensor, *, mask: Runs, dropout_p: float, is_causal: bool
) -> Tensor:
    """Attention within groups; query, key, value and the result are [1, heads, s, d]."""
    lengths = [count * length for count, length in mask.sizes]
    rows = (x.squeeze(0).transpose(0, 1).split(lengths) for x in (query, key, value))
    parts = []
    for (count, _), *run in zip(mask.sizes, *rows, strict=True):
        q, k, v = (x.unflatten(0, (count, -1)).transpose(1, 2) for x in run)
        part = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p, is_causal=is_causal)
        parts.append(part.transpose(1, 2).flatten(0, 1))
    return torch.cat(parts).transpose(0, 1).unsqueeze(0)


@dataclass(frozen=True)
class Groups:
    """An order of blocks in which those of one group (a window, or an image) are side by side, short groups first.

    Attributes:
        order: [n], which block stands at each place.
        runs: groups of equal length.
    """

    order: Tensor
    runs: Runs

    @staticmethod
    def of(numbers: Tensor) -> "Groups":
        """Groups of blocks with the same number, [n]; on the CPU."""
        _, group, count = numbers.unique(return_inverse=True, return_counts=True)
        order = (count[group] * len(count) + group).argsort(stable=True)
        lengths, many = count.unique(return_counts=True)
        sizes = zip(many.tolist(), (lengths * PATCHES).tolist(), strict=True)
        return Groups(order, Runs(tuple(sizes)))


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
        groups = {False: Groups.of(windows), True: Groups.of(images)}
        table, device = axial_table(places, self.head_dim), blocks.device
        tables = {full: table[group.order].flatten(0, 1)[None].to(device) for full, group in groups.items()}
        # all indices go to the device before the layers run, which then never wait for the host
        across = {full: groups[not full].order.argsort()[groups[full].order].to(device) for full in groups}
        now = 0 in self.full_layers
        h = self._embed(blocks)[groups[now].order.to(device)]
        back = groups[len(self.layers) - 1 in self.full_layers].order.argsort().to(device)
        for number, layer in enumerate(self.layers):
            full = number in self.full_layers
            h, now = h if full == now else h[across[full]], full
            h = layer(h.view(1, -1, h.shape[-1]), mask=groups[full].runs, input_pos=tables[full]).view_as(h)
        return h[back]

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
