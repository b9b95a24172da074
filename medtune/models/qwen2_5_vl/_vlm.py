"""Qwen2.5-VL behind the interface of all early-fusion models."""

from typing import Any

import torch
from torch import Tensor

from medtune.errors import ModelError
from medtune.models.common.early_fusion import EarlyFusionVLM
from medtune.models.common.interface import BatchShape
from medtune.models.qwen2_5_vl._positions import saved_positions, three_axes


class Qwen2_5VL(EarlyFusionVLM):
    """An early-fusion model whose images have any size, and whose positions follow rows and columns.

    A tile is a block of 28 x 28 pixels, which gives one feature. ``vision`` has one more tensor, ``grid`` [b, i, 2]:
    rows and columns of blocks of each image. ``vision_mask`` holds the place of each feature
    (:mod:`medtune.models.qwen2_5_vl._positions`).
    """

    @property
    def image_size(self) -> int:
        """Side of a block in pixels."""
        vision = self.family.hf_config()["vision_config"]
        return int(vision["patch_size"] * vision["spatial_merge_size"])

    def encode_tiles(self, tiles: Tensor, vision: dict[str, Tensor]) -> Tensor:
        """Features [n, 1, d] of the blocks that exist.

        Raises:
            ModelError: if an image's grid does not fit the number of its blocks.
        """
        grids = vision["grid"].flatten(0, 1)
        wrong = (grids.prod(dim=1) != vision["tiles"].flatten()).nonzero()
        if len(wrong):
            number = int(wrong[0])
            rows, columns = grids[number].tolist()
            raise ModelError(
                f"image {number % vision['grid'].shape[1]} of row {number // vision['grid'].shape[1]} of the batch has "
                f"{int(vision['tiles'].flatten()[number])} blocks of pixels, but its grid has {rows} x {columns}"
            )
        sizes = [(rows, columns) for rows, columns in grids.tolist() if rows]
        return self.encoder(tiles, sizes or [(1, 1)])

    def hidden(
        self, tokens: Tensor, features: Tensor | None = None, *, vision_mask: Tensor | None = None, **options: Any
    ) -> Tensor:
        """As in the base class; features need a ``vision_mask``, because positions depend on it.

        Raises:
            ModelError: also if ``vision_mask`` does not hold the places of the features.
        """
        if features is not None and vision_mask is None:
            raise ModelError("Qwen2.5-VL needs vision_mask beside features: it holds where each feature stands")
        return super().hidden(tokens, features, vision_mask=vision_mask, **options)

    def positions(self, tokens: Tensor, vision_mask: Tensor | None, input_pos: Tensor | None) -> Tensor | None:
        """Positions [b, s, 3] of a text with images; see :func:`medtune.models.qwen2_5_vl._positions.three_axes`.

        Raises:
            ModelError: if ``vision_mask`` does not hold the places of the features.
        """
        ready = input_pos is not None and input_pos.dim() == 3
        if ready or tokens.is_meta or vision_mask is None or not vision_mask.shape[1]:
            return input_pos
        return three_axes(tokens == self.image_id, vision_mask, input_pos)

    def saved_positions(self, vision_mask: Tensor) -> Tensor:
        """By how many positions each row's images are shorter than their tokens, [b]."""
        return saved_positions(vision_mask)

    def rotary_input(self, positions: Tensor | None) -> Tensor | None:
        """The table of angles of positions on three axes; computed once for all layers."""
        if positions is None or positions.dim() == 2:
            return positions
        return self.decoder.layers[0].attn.pos_embeddings.table(positions)

    def meta_vision(self, shape: BatchShape) -> dict[str, Tensor]:
        """Inputs of :meth:`encode` on the meta device: images of ``shape.tiles`` blocks at most, nearly square."""
        rows = max(1, int(shape.tiles**0.5))
        grid = torch.tensor([rows, shape.tiles // rows])
        b, i = shape.batch, shape.images
        vision = super().meta_vision(shape)
        return {**vision, "tiles": torch.full((b, i), int(grid.prod())), "grid": grid.expand(b, i, 2)}
