"""Batch rows of different lengths: the part of collation that all families share."""

from typing import Literal

import torch
from torch import Tensor

from medtune.models.common.chat_template import IGNORE_INDEX

PadSide = Literal["right", "left"]


def row_place(tokens: int, length: int, pad_side: PadSide) -> slice:
    """Position of a row of ``tokens`` tokens in a padded row of ``length``."""
    return slice(length - tokens, length) if pad_side == "left" else slice(0, tokens)


def stack_rows(items: list[dict], pad_id: int, pad_side: PadSide) -> dict[str, Tensor]:
    """Pad and stack the text.

    Args:
        items: each with ``tokens`` and ``labels``, lists of equal length; with a virtual user also ``asked``.
        pad_id: fills short rows.
        pad_side: the side that is filled; left for generation.

    Returns:
        ``tokens``, ``labels`` and ``padding`` (True = real token), all [b, s]; if an item has ``asked``, also ``asked``
        (True at the supervised tokens of a virtual user's questions).
    """
    length = max(len(item["tokens"]) for item in items)
    shape = (len(items), length)
    tokens, labels = torch.full(shape, pad_id), torch.full(shape, IGNORE_INDEX)
    padding = torch.zeros(shape, dtype=torch.bool)
    for row, item in enumerate(items):
        place = row_place(len(item["tokens"]), length, pad_side)
        tokens[row, place] = torch.tensor(item["tokens"])
        labels[row, place] = torch.tensor(item["labels"])
        padding[row, place] = True
    text = {"tokens": tokens, "labels": labels, "padding": padding}
    if any("asked" in item for item in items):
        text["asked"] = torch.zeros(shape, dtype=torch.bool)
        for row, item in enumerate(items):
            text["asked"][row, row_place(len(item["tokens"]), length, pad_side)] = torch.tensor(
                item.get("asked", False)
            )
    return text


def stack_tiles(
    items: list[dict], images: int, tiles: int, shape: tuple[int, ...], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Pad and stack what belongs to tiles.

    Missing images are filled with zeros, so that every process of a sharded run computes the same graph.

    Args:
        items: each with ``images``, a list of tensors [tiles, *shape].
        images: number of images that every sample is padded to, i.
        tiles: number of tiles that every image is padded to, t.
        shape: shape of one tile.
        dtype: dtype of the result.

    Returns:
        The tiles [b, i, t, *shape], and the number of real tiles of each image, [b, i].
    """
    stacked = torch.zeros(len(items), images, tiles, *shape, dtype=dtype)
    count = torch.zeros(len(items), images, dtype=torch.long)
    for row, item in enumerate(items):
        for column, image in enumerate(item["images"]):
            stacked[row, column, : len(image)] = image
            count[row, column] = len(image)
    return stacked, count
