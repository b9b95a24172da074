"""The classifier's transform: from an image to its pixels."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from medtune.data.items import Sizes
from medtune.data.sample import Sample
from medtune.errors import ConfigError


class PixelTransform:
    """Turns an image into the classifier's pixels: resized to a square, bicubic, normalised. Picklable; stateless.

    The pixels equal those of timm's evaluation transform with ``crop_pct=1, crop_mode="squash"``. In a training run
    this class takes the place of a language model's transform; a sample counts as one token and one tile.

    Args:
        image_size: side in pixels.
        mean: per channel, subtracted.
        std: per channel, divided by.

    Attributes:
        max_seq_len: 1.
        dtype: of the pixels.

    Raises:
        ConfigError: if the side is not positive, mean or std does not have three numbers, or a std is not positive.
    """

    def __init__(
        self, image_size: int = 224, mean: tuple[float, ...] = (0.5,) * 3, std: tuple[float, ...] = (0.5,) * 3
    ) -> None:
        if image_size < 1 or len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ConfigError(
                f"image_size {image_size}, mean {list(mean)}, std {list(std)}: the side must be at least 1, mean and "
                "std have one number for each of three channels, and std is above 0"
            )
        self.image_size, self.mean, self.std = image_size, tuple(mean), tuple(std)
        self.max_seq_len = 1
        self.dtype = torch.float32

    def pixels(self, image: Image.Image) -> Tensor:
        """Convert an image of any size and mode to [3, image_size, image_size] in ``dtype``."""
        square = image.convert("RGB").resize((self.image_size, self.image_size), Image.Resampling.BICUBIC)
        values = torch.from_numpy(np.array(square)).permute(2, 0, 1).float() / 255
        mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (self.mean, self.std))
        return ((values - mean) / std).contiguous().to(self.dtype)

    def token_counts(self, sample: Sample, sizes: Sizes | None = None) -> tuple[int, int]:
        """One token, which is supervised; the classifier reads no text."""
        return 1, 1

    def tile_count(self, width: int, height: int) -> int:
        """Always 1."""
        return 1

    def settings(self) -> dict[str, Any]:
        """The settings that determine the pixels."""
        return {"image_size": self.image_size, "mean": list(self.mean), "std": list(self.std)}
