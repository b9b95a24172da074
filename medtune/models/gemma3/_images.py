"""Gemma 3's images: one square of fixed size each."""

from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

SIGLIP_MEAN = SIGLIP_STD = (0.5, 0.5, 0.5)


class SquashTiler:
    """Resize an image to one square tile, whatever its aspect ratio, as Gemma 3's image processor does.

    The 8-bit image is resampled bilinearly. Gemma 3's further crops of long images ("pan and scan", off in the
    published processors) are not made.

    Args:
        size: side of the square in pixels.
        mean: per channel, subtracted.
        std: per channel, divided by.

    Attributes:
        size: side of the square in pixels.
        max_tiles: 1.
    """

    max_tiles = 1

    def __init__(
        self, size: int, *, mean: tuple[float, ...] = SIGLIP_MEAN, std: tuple[float, ...] = SIGLIP_STD
    ) -> None:
        self.size, self.mean, self.std = size, list(mean), list(std)

    def __call__(self, image: Image.Image) -> Tensor:
        """One tile [1, 3, size, size] in fp32."""
        image = image if image.mode == "RGB" else image.convert("RGB")
        square = image.resize((self.size, self.size), Image.Resampling.BILINEAR)
        pixels = F.to_dtype(F.pil_to_tensor(square), torch.float32, scale=True)
        return F.normalize(pixels, mean=self.mean, std=self.std)[None]

    def count(self, width: int, height: int) -> int:
        """1, whatever the size of the image."""
        return 1

    def settings(self) -> dict[str, Any]:
        """The settings that determine the tile."""
        names = ("size", "mean", "std")
        return {"tiler": type(self).__name__, **{name: getattr(self, name) for name in names}}
