"""Collate samples with different numbers of tokens, images and tiles."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from medtune.models.common.padding import PadSide, row_place, stack_rows, stack_tiles


@dataclass(frozen=True)
class BatchLayout:
    """The ids and sizes of tokenizer and model that the collator needs.

    Attributes:
        pad_id: fills short rows.
        image_id: id of the image token.
        image_size: side of a tile.
        tokens_per_tile: number of features of one tile.
    """

    pad_id: int
    image_id: int
    image_size: int
    tokens_per_tile: int


def collate(
    items: list[dict],
    layout: BatchLayout,
    *,
    pad_side: PadSide,
    images: int,
    tiles: int,
    dtype: torch.dtype,
    feature_width: int | None = None,
) -> dict:
    """Pad and stack.

    Args:
        items: transformed samples.
        layout: ids and sizes.
        pad_side: side on which short rows are filled; left for generation.
        images: minimum number of images per sample.
        tiles: minimum number of tiles per image.
        dtype: dtype of the images.
        feature_width: d if the items' images are features [tiles, tokens per tile, d]; None if they are pixels.

    Returns:
        The batch of the data contract, with ``features`` in place of ``vision`` if the images are features. Each
        image of a sample has its own columns of ``vision_mask``.
    """
    text = stack_rows(items, layout.pad_id, pad_side)
    images = max(images, *(len(item["images"]) for item in items), 1)
    tiles = max([tiles, 1, *(len(image) for item in items for image in item["images"])])
    rows, length = text["tokens"].shape
    vision_mask = torch.zeros(rows, length, images * tiles * layout.tokens_per_tile, dtype=torch.bool)
    for row, item in enumerate(items):
        place = row_place(len(item["tokens"]), length, pad_side)
        sees = _sees(item["tokens"], layout, [len(image) for image in item["images"]], tiles)
        vision_mask[row, place, : sees.shape[1]] = sees
    return {
        **text,
        **_stack_images(items, layout, images, tiles, dtype, feature_width),
        "vision_mask": vision_mask,
        "ids": [item["id"] for item in items],
    }


def _stack_images(
    items: list[dict], layout: BatchLayout, images: int, tiles: int, dtype: torch.dtype, width: int | None
) -> dict[str, Any]:
    """The encoder's input as ``vision``, or its earlier output as ``features``."""
    if width is not None:
        stacked, _ = stack_tiles(items, images, tiles, (layout.tokens_per_tile, width), dtype)
        return {"features": stacked.flatten(1, 3)}
    pixels, count = stack_tiles(items, images, tiles, (3, layout.image_size, layout.image_size), dtype)
    grid = torch.ones(len(items), images, 2, dtype=torch.long)
    for row, item in enumerate(items):
        for column, aspect_ratio in enumerate(item["aspect_ratio"]):
            grid[row, column] = aspect_ratio
    return {"vision": {"images": pixels, "aspect_ratio": grid, "tiles": count}}


def attention_spans(tokens: list[int], image_id: int) -> list[tuple[int, int]]:
    """Which tokens attend to each image: [start, end) per image, in order.

    The span begins at the image's token and ends before the next *group* of image tokens. Images whose tokens are
    adjacent share the text that follows them (Flamingo, Alayrac et al. 2022, Fig. 7, as implemented in torchtune).
    """
    spans: list[tuple[int, int]] = []
    end = following = len(tokens)
    for start in (i for i in reversed(range(len(tokens))) if tokens[i] == image_id):
        if following != start + 1:
            end = following
        spans.append((start, end))
        following = start
    return spans[::-1]


def _sees(tokens: list[int], layout: BatchLayout, real_tiles: list[int], tiles: int) -> Tensor:
    """What the tokens of one sample attend to, bool [tokens, images * tiles * tokens per tile]."""
    mask = torch.zeros(len(tokens), len(real_tiles), tiles * layout.tokens_per_tile, dtype=torch.bool)
    for image, (start, end) in enumerate(attention_spans(tokens, layout.image_id)):
        mask[start:end, image, : real_tiles[image] * layout.tokens_per_tile] = True
    return mask.flatten(1)
