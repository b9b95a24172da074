"""Collate samples with different numbers of tokens, images and tiles, for models that read images as tokens."""

import torch
from torch import Tensor

from medtune.models.common.padding import PadSide, stack_rows, stack_tiles


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
    feature_width: int | None = None,
) -> dict:
    """Pad and stack.

    Args:
        items: transformed samples.
        pad_id: fills short rows.
        tile_size: side of a tile in pixels.
        tokens_per_tile: features of one tile, k.
        pad_side: side on which short rows are filled; left for generation.
        images: minimum number of images per sample.
        tiles: minimum number of tiles per image.
        dtype: dtype of the images.
        feature_width: d if the items' images are features [tiles, k, d]; None if they are pixels.

    Returns:
        ``tokens``, ``labels``, ``padding`` [b, s]; ``vision`` with ``images`` [b, i, t, 3, h, w] and ``tiles`` [b, i]
        (real tiles, 0 where a sample has no such image); ``vision_mask`` [b, i * t * k], True at features that exist;
        ``ids``. If the images are features, the batch has ``features`` [b, i * t * k, d] instead of ``vision``, zero
        where there is no tile.
    """
    images = max(images, 1, *(len(item["images"]) for item in items))
    tiles = max([tiles, 1, *(len(image) for item in items for image in item["images"])])
    shape = (3, tile_size, tile_size) if feature_width is None else (tokens_per_tile, feature_width)
    stacked, count = stack_tiles(items, images, tiles, shape, dtype)
    pixels = {"vision": {"images": stacked, "tiles": count}}
    return {
        **stack_rows(items, pad_id, pad_side),
        **(pixels if feature_width is None else {"features": stacked.flatten(1, 3)}),
        "vision_mask": existing_features(count, tiles, tokens_per_tile),
        "ids": [item["id"] for item in items],
    }


def existing_features(tiles: Tensor, most: int, tokens_per_tile: int) -> Tensor:
    """Which features of a padded batch belong to real tiles.

    Args:
        tiles: real tiles per image [b, i].
        most: number of tiles that every image is padded to, t.
        tokens_per_tile: features of one tile, k.

    Returns:
        [b, i * t * k] bool.
    """
    real = torch.arange(most, device=tiles.device) < tiles.unsqueeze(-1)
    return real.repeat_interleave(tokens_per_tile, dim=-1).flatten(1)
