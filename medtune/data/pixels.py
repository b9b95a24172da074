"""Conversion of any pixel format to 8-bit RGB, such that the image looks as it would in a viewer."""

import numpy as np
from PIL import Image

from medtune.errors import DataError

_ALPHA_MODES = ("RGBA", "LA", "PA", "La", "RGBa")
GREY_BITS = range(8, 17)
"""Depths that 16-bit grey values can have."""


def to_rgb(image: Image.Image, grey_bits: int | None = None, inverted: bool = False) -> Image.Image:
    """Convert a decoded image to mode RGB.

    * Grey values of more than 8 bits are scaled to 8 bits from 0 to 2^b - 1. b is ``grey_bits``, or else the smallest
      depth from 8 to 16 bits that holds the largest value: detectors of 10, 12 or 14 bits store their values in 16
      bits, and their images would be almost black otherwise.
    * Transparent pixels are blended with black, the background of most medical images.
    * Grey, palette and CMYK are converted by Pillow.

    Args:
        image: a loaded image of any mode.
        grey_bits: depth of the grey values, for sets whose images must keep their brightness relative to one another;
            larger values are shown white.
        inverted: whether large grey values of more than 8 bits are dark (TIFF's WhiteIsZero).

    Raises:
        DataError: for floating-point pixels and for integers of more than 16 bits, which have no standard range, and
            for colours that Pillow cannot convert. The message is a phrase that follows the image's name.
    """
    if image.mode == "F":
        raise DataError("holds floating-point pixels, which have no agreed range; save it with 8 or 16 bits.")
    if image.mode.startswith("I"):
        image = _eight_bit(image, grey_bits, inverted)
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        rgba = image.convert("RGBA")
        canvas = Image.new("RGBA", rgba.size, (0, 0, 0, 255))
        return Image.alpha_composite(canvas, rgba).convert("RGB")
    if image.mode == "LAB":
        raise DataError("holds colours of the space Lab; save it as RGB.")
    return image if image.mode == "RGB" else image.convert("RGB")


def scaled(values: np.ndarray, lowest: float, highest: float) -> np.ndarray:
    """Map a range of values to 0..255 (``uint8``); values outside the range are clipped."""
    if highest <= lowest:
        return np.where(values > lowest, 255, 0).astype(np.uint8)
    if (lowest, highest, values.dtype) == (0, 255, np.uint8):
        return values
    return np.rint((np.clip(values.astype(np.float64), lowest, highest) - lowest) * (255 / (highest - lowest))).astype(
        np.uint8
    )


def _eight_bit(image: Image.Image, grey_bits: int | None, inverted: bool) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    lowest, highest = int(values.min()), int(values.max())
    if lowest < 0 or highest > 65535:
        raise DataError(f"holds values from {lowest} to {highest}, beyond 16 bits; save it with 8 or 16 bits.")
    full = (1 << (grey_bits or max(GREY_BITS[0], highest.bit_length()))) - 1
    shown = (np.minimum(values, full) * 255 + full // 2) // full
    return Image.fromarray((255 - shown if inverted else shown).astype(np.uint8))
