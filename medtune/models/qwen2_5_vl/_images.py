"""Images of any size as blocks of pixels: Qwen2.5-VL's dynamic resolution."""

import math
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from medtune.errors import DataError, ModelError
from medtune.models.qwen2_5_vl._positions import LONGEST_SIDE
from medtune.models.qwen2_5_vl._shape import FRAMES, MERGE

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
MOST_RATIO = 200
"""Largest ratio of an image's sides."""


class BlockCutter:
    """Resize an image to a multiple of the block's side, and cut it into blocks, one for each image token.

    The sides are rounded, and the whole is scaled so that it has between ``min_pixels`` and ``max_pixels`` (Qwen2-VL,
    Wang et al. 2024, section 2.1), by bicubic resampling of the 8-bit image, as in the published code.

    Args:
        size: side of a block in pixels.
        min_pixels: smaller images are enlarged.
        max_pixels: larger images are reduced.
        mean: per channel, subtracted.
        std: per channel, divided by.

    Attributes:
        size: side of a block in pixels.
        max_tiles: maximum number of blocks, and of tokens, of one image.

    Raises:
        ModelError: if no image can have so many pixels.
    """

    def __init__(
        self,
        size: int,
        min_pixels: int,
        max_pixels: int,
        *,
        mean: tuple[float, ...] = CLIP_MEAN,
        std: tuple[float, ...] = CLIP_STD,
    ) -> None:
        self.size, self.min_pixels, self.max_pixels = size, min_pixels, max_pixels
        self.mean, self.std = list(mean), list(std)
        if not 0 < min_pixels <= max_pixels or max_pixels < size**2:
            raise ModelError(
                f"min_pixels {min_pixels} and max_pixels {max_pixels} must be in order, and max_pixels at least "
                f"{size**2}: a block of {size} x {size} pixels is one token"
            )
        self.max_tiles = max_pixels // size**2
        if self.max_tiles > LONGEST_SIDE:
            raise ModelError(f"max_pixels {max_pixels} allows {self.max_tiles:,} tokens an image; lower it")

    def __call__(self, image: Image.Image) -> Tensor:
        """Blocks [n, 3, size, size] in fp32, row by row."""
        rows, columns = self.grid(*image.size)
        image = image if image.mode == "RGB" else image.convert("RGB")
        resized = image.resize((columns * self.size, rows * self.size), Image.Resampling.BICUBIC)
        pixels = F.to_dtype(F.pil_to_tensor(resized), torch.float32, scale=True)
        pixels = F.normalize(pixels, mean=self.mean, std=self.std)
        blocks = pixels.unflatten(1, (rows, self.size)).unflatten(3, (columns, self.size))
        return blocks.permute(1, 3, 0, 2, 4).flatten(0, 1)

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """Rows and columns of blocks of an image of this size in pixels.

        Raises:
            DataError: if one side is more than ``MOST_RATIO`` times as long as the other.
        """
        columns, rows = smart_resize(width, height, self.size, self.min_pixels, self.max_pixels)
        return rows // self.size, columns // self.size

    def count(self, width: int, height: int) -> int:
        """Number of blocks of an image of this size in pixels."""
        rows, columns = self.grid(width, height)
        return rows * columns

    def settings(self) -> dict[str, Any]:
        """The settings that determine the blocks."""
        names = ("size", "min_pixels", "max_pixels", "mean", "std")
        return {"tiler": type(self).__name__, **{name: getattr(self, name) for name in names}}


def smart_resize(width: int, height: int, factor: int, least: int, most: int) -> tuple[int, int]:
    """The size to which the published code resizes an image.

    Args:
        width: of the image, in pixels.
        height: of the image.
        factor: both sides become multiples of it.
        least: minimum number of pixels.
        most: maximum number of pixels.

    Returns:
        (width, height).

    Raises:
        DataError: if one side is more than ``MOST_RATIO`` times as long as the other.
    """
    if max(width, height) > MOST_RATIO * min(width, height):
        raise DataError(
            f"an image of {width} x {height} pixels is more than {MOST_RATIO} times as long as wide, which Qwen2.5-VL "
            "does not read; crop it, or leave the sample out (on_error: skip)"
        )
    wide, high = (round(side / factor) * factor for side in (width, height))
    if wide * high > most:
        scale = math.sqrt(width * height / most)
        wide, high = (max(factor, math.floor(side / scale / factor) * factor) for side in (width, height))
    elif wide * high < least:
        scale = math.sqrt(least / (width * height))
        wide, high = (math.ceil(side * scale / factor) * factor for side in (width, height))
    return wide, high


def published_inputs(images: Tensor, grids: Tensor) -> dict[str, Tensor]:
    """A sample's images as the published processor gives them.

    Args:
        images: blocks [i, t, 3, size, size], each image padded to t.
        grids: rows and columns of blocks of each image, [i, 2].

    Returns:
        ``pixel_values`` [patches, 3 * FRAMES * (size / MERGE)^2] of all images, the frames alike, and
        ``image_grid_thw`` [i, 3], counted in patches.
    """
    blocks = torch.cat([image[: int(grid.prod())] for image, grid in zip(images, grids, strict=True)])
    side = blocks.shape[-1] // MERGE
    patches = blocks.unflatten(3, (MERGE, side)).unflatten(2, (MERGE, side)).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
    frames = patches[:, :, None].expand(-1, -1, FRAMES, -1, -1).flatten(1)
    return {"pixel_values": frames, "image_grid_thw": torch.cat([torch.ones_like(grids[:, :1]), MERGE * grids], dim=1)}
