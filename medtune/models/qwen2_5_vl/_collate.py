"""Collate samples whose images have different sizes."""

import torch

from medtune.errors import DataError
from medtune.models.common.early_collate import collate_early
from medtune.models.common.padding import PadSide
from medtune.models.qwen2_5_vl._positions import encode_places


def collate_blocks(
    items: list[dict],
    *,
    pad_id: int,
    block_size: int,
    pad_side: PadSide = "right",
    images: int = 1,
    tiles: int = 1,
    dtype: torch.dtype = torch.float32,
    feature_width: int | None = None,
) -> dict:
    """Pad and stack, as :func:`medtune.models.common.early_collate.collate_early` does for tiles.

    Args:
        items: transformed samples; also with ``grids``, rows and columns of blocks of each image.
        pad_id: fills short rows.
        block_size: side of a block in pixels.
        pad_side: side on which short rows are filled; left for generation.
        images: minimum number of images per sample.
        tiles: minimum number of blocks per image.
        dtype: dtype of the images.
        feature_width: d if the items' images are features [n, 1, d]; None if they are pixels.

    Returns:
        As ``collate_early``, with ``vision["grid"]`` [b, i, 2], 0 where a sample has no such image, and the place of
        each feature in ``vision_mask``.

    Raises:
        DataError: if an image has another number of blocks than its grid.
    """
    batch = collate_early(
        items,
        pad_id=pad_id,
        tile_size=block_size,
        tokens_per_tile=1,
        pad_side=pad_side,
        images=images,
        tiles=tiles,
        dtype=dtype,
        feature_width=feature_width,
    )
    images = max(images, 1, *(len(item["images"]) for item in items))
    grids = torch.zeros(len(items), images, 2, dtype=torch.long)
    for row, item in enumerate(items):
        for slot, ((height, width), image) in enumerate(zip(item["grids"], item["images"], strict=True)):
            if len(image) != height * width:
                raise DataError(
                    f"sample {item['id']}: image {slot + 1} has {len(image)} blocks, but {height} x {width} at this "
                    "min_pixels and max_pixels; its features were made at others, encode it again"
                )
            grids[row, slot] = torch.tensor([height, width])
    if "vision" in batch:
        batch["vision"]["grid"] = grids
    return {**batch, "vision_mask": encode_places(grids, batch["vision_mask"].shape[1] // images)}
