"""Convert an image to one normalised square tile, as CLIP expects it."""

from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from medtune.errors import ModelError

SquareMode = Literal["pad", "crop"]
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class SquareTiler:
    """Convert an image to one square tile.

    ``pad`` is the method of LLaVA-1.5: the image is centred on a square of CLIP's mean colour, so that nothing is lost.
    ``crop`` is the method of CLIP: the shorter side is resized to the tile and the longer one is cut at both ends. Both
    resize with Pillow's bicubic filter and compute in fp32.

    Args:
        size: side of the tile in pixels.
        resize: ``pad`` or ``crop``.

    Attributes:
        max_tiles: 1.

    Raises:
        ModelError: if the mode is unknown.
    """

    max_tiles = 1

    def __init__(self, size: int, resize: SquareMode = "pad") -> None:
        if resize not in ("pad", "crop"):
            raise ModelError(f"resize must be pad or crop, got {resize!r}")
        self.size, self.resize = size, resize

    def __call__(self, image: Image.Image) -> Tensor:
        """One tile [1, 3, size, size] in fp32."""
        image = image if image.mode == "RGB" else image.convert("RGB")
        square = _padded(image) if self.resize == "pad" else image
        pixels = F.to_dtype(F.pil_to_tensor(_fitted(square, self.size)), torch.float32, scale=True)
        return F.normalize(pixels, mean=list(CLIP_MEAN), std=list(CLIP_STD))[None]

    def count(self, width: int, height: int) -> int:
        """Number of tiles of an image of any size: always 1."""
        return 1

    def settings(self) -> dict[str, Any]:
        """The settings that determine the tile."""
        return {"tiler": type(self).__name__, "size": self.size, "resize": self.resize}


def _padded(image: Image.Image) -> Image.Image:
    width, height = image.size
    side = max(width, height)
    square = Image.new("RGB", (side, side), tuple(int(channel * 255) for channel in CLIP_MEAN))
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def _fitted(image: Image.Image, size: int) -> Image.Image:
    """Resize the shorter side to ``size`` and keep the middle of the longer one."""
    short = min(image.size)
    width, height = (int(size * side / short) for side in image.size)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return resized.crop((left, top, left + size, top + size))
