"""Conversion of any pixel format to 8-bit RGB, such that the image looks as it would in a viewer."""

import numpy as np
from PIL import Image

from medtune.errors import DataError

_ALPHA_MODES = ("RGBA", "LA", "PA", "La", "RGBa")


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a decoded image to mode RGB.

    * 16-bit grey is scaled to 8 bits: from 0..65535, or from 0..4095 if no value is larger. 12-bit detectors store
      their values in 16 bits, and their images would be almost black otherwise.
    * Transparent pixels are blended with black, the background of most medical images.
    * Grey, palette and CMYK are converted by Pillow.

    Args:
        image: a loaded image of any mode.

    Raises:
        DataError: for floating-point pixels and for integers of more than 16 bits, which have no standard range. The
            message is a phrase that follows the image's name.
    """
    if image.mode == "F":
        raise DataError("holds floating-point pixels, which have no agreed range; save it with 8 or 16 bits.")
    if image.mode.startswith("I"):
        image = _eight_bit(image)
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        rgba = image.convert("RGBA")
        canvas = Image.new("RGBA", rgba.size, (0, 0, 0, 255))
        return Image.alpha_composite(canvas, rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    lowest, highest = int(values.min()), int(values.max())
    if lowest < 0 or highest > 65535:
        raise DataError(f"holds values from {lowest} to {highest}, beyond 16 bits; save it with 8 or 16 bits.")
    full = 4095 if highest <= 4095 else 65535
    return Image.fromarray(((values * 255 + full // 2) // full).astype(np.uint8))
