"""InternVL's dynamic tiling: an image as a grid of square tiles and a thumbnail of the whole image."""

from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from medtune.errors import ModelError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class DynamicTiler:
    """Cut an image into 1 to ``most`` tiles, and add a thumbnail if there is more than one tile.

    The image is resized to the grid whose aspect ratio is closest to its own (InternVL 1.5, Chen et al. 2024, section
    3.2), by bicubic resampling of the 8-bit image, as in InternVL's code.

    Args:
        size: side of a tile in pixels.
        most: maximum number of tiles of one image, the thumbnail not counted.
        thumbnail: whether to add the thumbnail.
        mean: per channel, subtracted.
        std: per channel, divided by.

    Attributes:
        size: side of a tile in pixels.
        max_tiles: maximum number of tiles of one image, the thumbnail counted.

    Raises:
        ModelError: if ``most`` is below 1.
    """

    def __init__(
        self,
        size: int,
        most: int,
        *,
        thumbnail: bool = True,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
    ) -> None:
        if most < 1:
            raise ModelError(f"max_num_tiles must be at least 1, got {most}")
        self.size, self.most, self.thumbnail = size, most, thumbnail
        self.max_tiles = most + (thumbnail and most > 1)
        self.mean, self.std = list(mean), list(std)

    def __call__(self, image: Image.Image) -> Tensor:
        """Tiles [t, 3, size, size] in fp32, row by row, the thumbnail last."""
        image = image if image.mode == "RGB" else image.convert("RGB")
        columns, rows = closest_grid(*image.size, size=self.size, most=self.most)
        whole = self._pixels(image, columns, rows)
        cut = whole.unflatten(1, (rows, self.size)).unflatten(3, (columns, self.size))
        tiles = cut.permute(1, 3, 0, 2, 4).flatten(0, 1)
        if self.thumbnail and len(tiles) > 1:
            tiles = torch.cat([tiles, self._pixels(image, 1, 1)[None]])
        return F.normalize(tiles, mean=self.mean, std=self.std)

    def count(self, width: int, height: int) -> int:
        """Number of tiles of an image of this size, the thumbnail included."""
        columns, rows = closest_grid(width, height, size=self.size, most=self.most)
        return rows * columns + (self.thumbnail and rows * columns > 1)

    def settings(self) -> dict[str, Any]:
        """The settings that determine the tiles."""
        names = ("size", "most", "thumbnail", "mean", "std")
        return {"tiler": type(self).__name__, **{name: getattr(self, name) for name in names}}

    def _pixels(self, image: Image.Image, columns: int, rows: int) -> Tensor:
        resized = image.resize((columns * self.size, rows * self.size), Image.Resampling.BICUBIC)
        return F.to_dtype(F.pil_to_tensor(resized), torch.float32, scale=True)


def closest_grid(width: int, height: int, *, size: int, most: int) -> tuple[int, int]:
    """The grid whose width-to-height ratio is closest to the image's.

    Of equally close grids the larger one is taken if the image has more than half of its pixels.

    Args:
        width: width of the image in pixels.
        height: height of the image in pixels.
        size: side of a tile in pixels.
        most: maximum number of tiles.

    Returns:
        (columns, rows).
    """
    side = range(1, most + 1)
    grids = sorted(((c, r) for c in side for r in side if c * r <= most), key=lambda grid: grid[0] * grid[1])
    best, closest = (1, 1), float("inf")
    for columns, rows in grids:
        distance = abs(width / height - columns / rows)
        larger = distance == closest and width * height > 0.5 * size * size * columns * rows
        if distance < closest or larger:
            best, closest = (columns, rows), distance
    return best
