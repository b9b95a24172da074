"""Cut an image into normalised square tiles."""

from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from torchtune.modules.transforms.vision_utils.get_canvas_best_fit import (
    find_supported_resolutions,
    get_canvas_best_fit,
)
from torchtune.modules.transforms.vision_utils.resize_with_pad import resize_with_pad
from torchtune.modules.transforms.vision_utils.tile_crop import tile_crop
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from medtune.errors import ModelError

ResizeMode = Literal["squash", "pad"]
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class ImageTiler:
    """Cut an image into tiles of one size.

    ``squash`` resizes to one tile and ignores the aspect ratio, as InstFree's official code does. ``pad`` is the method
    of torchtune and Meta: it takes the best grid of tiles, keeps the aspect ratio, and pads with black on the right and
    below. Both compute in fp32.

    Args:
        size: side of a tile in pixels.
        max_tiles: maximum number of tiles of one image.
        resize: ``squash`` or ``pad``; None squashes when ``max_tiles`` is 1 and pads otherwise.
        mean: per channel, subtracted.
        std: per channel, divided by.

    Raises:
        ModelError: if ``squash`` is combined with several tiles, or the mode is unknown.
    """

    def __init__(
        self,
        size: int,
        max_tiles: int,
        resize: ResizeMode | None = None,
        mean: tuple[float, ...] = CLIP_MEAN,
        std: tuple[float, ...] = CLIP_STD,
    ) -> None:
        resize = resize or ("squash" if max_tiles == 1 else "pad")
        if resize not in ("squash", "pad"):
            raise ModelError(f"resize must be squash or pad, got {resize!r}")
        if resize == "squash" and max_tiles != 1:
            raise ModelError(f"resize=squash makes one tile, but max_num_tiles is {max_tiles}; use resize=pad")
        if max_tiles < 1:
            raise ModelError(f"max_num_tiles must be at least 1, got {max_tiles}")
        self.size, self.max_tiles, self.resize, self.mean, self.std = size, max_tiles, resize, list(mean), list(std)
        # sorted, because torchtune takes them from an unordered set and breaks ties by order
        self._canvases = torch.tensor(sorted(find_supported_resolutions(max_tiles, size))).reshape(-1, 2)

    def __call__(self, image: Image.Image) -> tuple[Tensor, Tensor]:
        """Tiles [t, 3, size, size] in fp32 and the grid [2] (rows, columns)."""
        image = image if image.mode == "RGB" else image.convert("RGB")
        if self.resize == "squash":
            image = F.resize(image, [self.size, self.size], interpolation=InterpolationMode.BILINEAR)
            return self._normalise(self._pixels(image))[None], torch.ones(2, dtype=torch.long)
        pixels = self._pixels(image)
        canvas = get_canvas_best_fit(pixels, self._canvases, False)
        pixels = resize_with_pad(pixels, canvas, InterpolationMode.BILINEAR, max_size=self.size)
        return tile_crop(self._normalise(pixels), self.size), torch.tensor(canvas) // self.size

    def count(self, width: int, height: int) -> int:
        """Number of tiles of an image of this size."""
        if self.resize == "squash":
            return 1
        rows, columns = get_canvas_best_fit(torch.empty(3, height, width, device="meta"), self._canvases, False)
        return (rows // self.size) * (columns // self.size)

    def settings(self) -> dict[str, Any]:
        """The settings that determine the tiles."""
        names = ("size", "max_tiles", "resize", "mean", "std")
        return {"tiler": type(self).__name__, **{name: getattr(self, name) for name in names}}

    def _pixels(self, image: Image.Image) -> Tensor:
        return F.to_dtype(F.pil_to_tensor(image), torch.float32, scale=True)

    def _normalise(self, pixels: Tensor) -> Tensor:
        return F.normalize(pixels, mean=self.mean, std=self.std)
