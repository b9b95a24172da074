"""Samples with different numbers of tokens, images and tiles as one batch, for models that read images as tokens."""

import torch
from torch import Tensor

from medtune.models.padding import PadSide, stack_rows


def collate_early(
    items: list[dict],
    *,
    pad_id: int,
    tile_size: int,
    tokens_per_tile: int,
    pad_side: PadSide = "right",
    images: int = 1,
    tiles: int = 1,
    dtype: torch.dtype = torch.float32,
) -> dict:
    """Pad and stack.

    Args:
        items: transformed samples.
        pad_id: fills short rows.
        tile_size: side of a tile in pixels.
        tokens_per_tile: features of one tile, k.
        pad_side: side on which short rows are filled; left for generation.
        images: at least so many images per sample.
        tiles: at least so many tiles per image.
        dtype: of the images.

    Returns:
        ``tokens``, ``labels``, ``padding`` [b, s]; ``vision`` with ``images`` [b, i, t, 3, h, w] and ``tiles`` [b, i]
        (real tiles, 0 where a sample has no such image); ``vision_mask`` [b, i * t * k], True at features that exist;
        ``ids``.
    """
    images = max(images, 1, *(len(item["images"]) for item in items))
    tiles = max([tiles, 1, *(len(image) for item in items for image in item["images"])])
    vision = _stack_images(items, images, tiles, tile_size, dtype)
    return {
        **stack_rows(items, pad_id, pad_side),
        "vision": vision,
        "vision_mask": existing_features(vision["tiles"], tiles, tokens_per_tile),
        "ids": [item["id"] for item in items],
    }


def existing_features(tiles: Tensor, most: int, tokens_per_tile: int) -> Tensor:
    """Which features of a padded batch are of real tiles.

    Args:
        tiles: real tiles per image [b, i].
        most: tiles that every image is padded to, t.
        tokens_per_tile: features of one tile, k.

    Returns:
        [b, i * t * k] bool.
    """
    real = torch.arange(most, device=tiles.device) < tiles.unsqueeze(-1)
    return real.repeat_interleave(tokens_per_tile, dim=-1).flatten(1)


def _stack_images(items: list[dict], images: int, tiles: int, size: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Zero images stand in where there are none, so that every process of a sharded run takes the same graph."""
    pixels = torch.zeros(len(items), images, tiles, 3, size, size, dtype=dtype)
    count = torch.zeros(len(items), images, dtype=torch.long)
    for row, item in enumerate(items):
        for column, image in enumerate(item["images"]):
            pixels[row, column, : len(image)] = image
            count[row, column] = len(image)
    return {"images": pixels, "tiles": count}
