"""Where image features stand, and multimodal rotary positions (M-RoPE; Qwen2-VL, Wang et al. 2024, section 2.1).

A text token has one position. An image feature has three: the position at which its image starts (time), that position
plus its row, and that position plus its column. The text after an image of ``h x w`` features goes on ``max(h, w)``
positions after the image's start, not ``h * w``.

The places of features travel in ``vision_mask``, which says for every family which features exist: here its entry is 0
for a feature that does not exist, and else the rows and columns of the image and of the feature in one number. It
reaches every forward pass, so that a method need not know that positions depend on images.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torchtune.models.qwen2._positional_embeddings import Qwen2RotaryPositionalEmbeddings

from medtune.errors import ModelError

_BITS = 15
LONGEST_SIDE = 2**_BITS - 1
"""Largest number of rows or columns of an image's features that can be stored."""


class Places(NamedTuple):
    """Where features stand; all of one shape, 0 where there is no feature.

    Attributes:
        height: rows of the feature's image.
        width: its columns.
        row: row of the feature.
        column: its column.
    """

    height: Tensor
    width: Tensor
    row: Tensor
    column: Tensor

    @property
    def inside(self) -> Tensor:
        """Number of the feature in its image, row by row."""
        return self.row * self.width + self.column

    @property
    def saved(self) -> Tensor:
        """At the last feature of an image: by how many positions the image is shorter than its tokens."""
        tokens = self.height * self.width
        last = (self.inside == tokens - 1) & (tokens > 0)
        return torch.where(last, tokens - torch.maximum(self.height, self.width), 0)


def encode_places(grids: Tensor, most: int) -> Tensor:
    """The ``vision_mask`` of a batch.

    Args:
        grids: rows and columns of each image's features, [b, i, 2]; 0 where there is no image.
        most: number of features that every image is padded to, t.

    Returns:
        [b, i * t] int64: 0 where there is no feature.
    """
    height, width = grids[..., 0:1], grids[..., 1:2]
    number = torch.arange(most, device=grids.device).expand(*grids.shape[:2], most)
    columns = width.clamp(min=1)
    code = ((height << _BITS | width) << _BITS | number // columns) << _BITS | number % columns
    return torch.where(number < height * width, code, 0).flatten(1)


def decode_places(vision_mask: Tensor) -> Places:
    """The inverse of :func:`encode_places`, [b, s_e].

    Raises:
        ModelError: if the mask only says which features exist.
    """
    if vision_mask.dtype != torch.int64:
        raise ModelError(
            "Qwen2.5-VL needs the place of each image feature, which its own transform writes into vision_mask; this "
            f"one is of type {str(vision_mask.dtype).removeprefix('torch.')}"
        )
    shifts = (3 * _BITS, 2 * _BITS, _BITS, 0)
    return Places(*((vision_mask >> shift) & LONGEST_SIDE for shift in shifts))


def saved_positions(vision_mask: Tensor) -> Tensor:
    """By how many positions each row's images are shorter than their tokens, [b]; of images read to the end."""
    return decode_places(vision_mask).saved.sum(dim=1)


def three_axes(image: Tensor, vision_mask: Tensor, input_pos: Tensor | None) -> Tensor:
    """Positions on three axes of tokens whose positions were counted one by one.

    Left padding, branches and packed rows need nothing of their own: the images of a row come before its branches.

    Args:
        image: [b, s], True at image tokens.
        vision_mask: [b, s_e] from :func:`encode_places`; the k-th image token of a row takes its k-th feature.
        input_pos: [b, s], the number of each token in its text, from 0; None counts columns. If the text began
            earlier (cached decoding), less what :func:`saved_positions` gives for the images before.

    Returns:
        [b, s, 3]: time, row, column.
    """
    if input_pos is None:
        input_pos = torch.arange(image.shape[1], device=image.device).expand(image.shape)
    order = (vision_mask > 0).int().argsort(dim=1, descending=True, stable=True)
    places = decode_places(vision_mask.gather(1, order))
    count = image.cumsum(dim=1)
    turn = (count - 1).clamp(0, order.shape[1] - 1)
    saved = places.saved.cumsum(dim=1)
    before = saved.gather(1, turn)
    text = input_pos - torch.where(count > 0, before, 0)
    start = input_pos - (places.inside - places.saved).gather(1, turn) - before
    row, column = start + places.row.gather(1, turn), start + places.column.gather(1, turn)
    return torch.where(image[..., None], torch.stack([start, row, column], dim=-1), text[..., None])


class MRope(Qwen2RotaryPositionalEmbeddings):
    """Rotary positions of which one section of the angles follows the time, one the row and one the column.

    Args:
        dim: width of a head.
        max_seq_len: number of positions.
        base: base of the angles.
        sections: angles of each axis; they add up to ``dim / 2``.
    """

    def __init__(self, dim: int, max_seq_len: int, base: float, sections: tuple[int, int, int]) -> None:
        self.sections = sections
        super().__init__(dim, max_seq_len, base)

    def rope_init(self) -> None:
        """Build the tables; called again after a build on the meta device."""
        super().rope_init()
        half = [axis for axis, width in enumerate(self.sections) for _ in range(width)]
        self.register_buffer("axis", torch.tensor(half * 4), persistent=False)  # halves of cosines, halves of sines

    def table(self, positions: Tensor) -> Tensor:
        """Cosines and sines of positions [b, s, 3], [b, s, 2 * dim]; to be computed once for all layers."""
        angles = self.cache[positions]
        return angles.gather(2, self.axis.expand(*angles.shape[:2], 1, -1)).squeeze(2)

    def forward(self, x: Tensor, input_pos: Tensor | None = None) -> Tensor:
        """Rotate heads.

        Args:
            x: [b, s, heads, dim].
            input_pos: positions [b, s] of text, a table [b, s, 2 * dim] from :meth:`table`, or None for text that
                starts at 0.
        """
        if input_pos is None or not input_pos.is_floating_point():
            return super().forward(x, input_pos=input_pos)
        return rotate(x, input_pos)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotate the halves of heads x [b, s, heads, d] by cosines and sines [b, s, 2 * d], in the type of x."""
    cos, _, sin, _ = table.unsqueeze(2).to(x.dtype).chunk(4, dim=-1)  # the angles of both halves are the same
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
