"""Sources whose images are cropped to their centre, or padded to a square without changing their aspect ratio."""

import hashlib
from abc import ABC, abstractmethod

from PIL import Image

from medtune.data.passing import PassingSource
from medtune.data.sample import Sample
from medtune.data.source import SampleSource
from medtune.errors import ConfigError


def central_box(width: int, height: int, share: float) -> tuple[int, int, int, int]:
    """Return left, upper, right, lower of the middle ``share`` of each side, in pixels; at least one pixel."""
    kept_width, kept_height = max(1, round(width * share)), max(1, round(height * share))
    left, upper = (width - kept_width) // 2, (height - kept_height) // 2
    return left, upper, left + kept_width, upper + kept_height


def padded_box(width: int, height: int, side: int) -> tuple[int, int, int, int]:
    """Return left, upper, right, lower of an image that is fitted into a square and centred in it, in pixels."""
    ratio = min(side / width, side / height)
    fitted_width, fitted_height = max(1, int(width * ratio)), max(1, int(height * ratio))
    left, upper = (side - fitted_width) // 2, (side - fitted_height) // 2
    return left, upper, left + fitted_width, upper + fitted_height


class ChangedImages(PassingSource, ABC):
    """A source that crops or pads its images when they are opened; every image gets the same change.

    Args:
        source: the samples.
    """

    @abstractmethod
    def change(self, image: Image.Image) -> Image.Image:
        """Return the changed image."""

    @abstractmethod
    def changed_size(self, width: int, height: int) -> tuple[int, int]:
        """Return width and height of the changed image."""

    @property
    @abstractmethod
    def change_key(self) -> str:
        """Text that identifies the change, for the fingerprint."""

    def open_images(self, sample: Sample) -> list[Image.Image]:
        """Decode a sample's images and change them."""
        return [self.change(image) for image in self.source.open_images(sample)]

    def image_sizes(self, sample: Sample) -> list[tuple[int, int]]:
        """Sizes after the change."""
        return [self.changed_size(width, height) for width, height in self.source.image_sizes(sample)]

    def fingerprint(self) -> str:
        """Return a SHA-256 of the source's fingerprint and the change."""
        return hashlib.sha256(f"{self.source.fingerprint()}|{self.change_key}".encode()).hexdigest()


class CenterCropped(ChangedImages):
    """A source that keeps only the middle of its images.

    Args:
        source: the samples.
        share: how much of each side is kept, above 0 and at most 1.

    Raises:
        ConfigError: for a share outside that range.
    """

    def __init__(self, source: SampleSource, share: float) -> None:
        if not 0.0 < share <= 1.0:
            raise ConfigError(f"center_crop is {share}; it must be above 0 and at most 1 (the whole image).")
        super().__init__(source)
        self.share = share

    def change(self, image: Image.Image) -> Image.Image:
        """Return the image's middle."""
        return image.crop(central_box(*image.size, self.share))

    def changed_size(self, width: int, height: int) -> tuple[int, int]:
        """Return the size of the middle."""
        left, upper, right, lower = central_box(width, height, self.share)
        return right - left, lower - upper

    @property
    def change_key(self) -> str:
        """The share."""
        return str(self.share)


class PaddedToSquare(ChangedImages):
    """A source whose images keep their aspect ratio: each is resized (Lanczos) into a black square.

    InstFree prepares its lesion crops in this way.

    Args:
        source: the samples.
        side: of the square, in pixels.

    Raises:
        ConfigError: for a side below 1.
    """

    def __init__(self, source: SampleSource, side: int) -> None:
        if side < 1:
            raise ConfigError(f"pad_to_square is {side}; it must be the side of the square in pixels, such as 560.")
        super().__init__(source)
        self.side = side

    def change(self, image: Image.Image) -> Image.Image:
        """Return the square."""
        left, upper, right, lower = padded_box(*image.size, self.side)
        square = Image.new("RGB", (self.side, self.side))
        square.paste(image.resize((right - left, lower - upper), Image.Resampling.LANCZOS), (left, upper))
        return square

    def changed_size(self, width: int, height: int) -> tuple[int, int]:
        """Return the square's size, which does not depend on the image's size."""
        return self.side, self.side

    @property
    def change_key(self) -> str:
        """The side, written so that it cannot equal a share."""
        return f"square {self.side}"


def changed_images(source: SampleSource, center_crop: float = 1.0, pad_to_square: int | None = None) -> SampleSource:
    """Return a source whose images are cropped to their centre and then padded, or the source itself without a change.

    Args:
        source: the samples.
        center_crop: see :class:`CenterCropped`; 1 keeps the whole image.
        pad_to_square: see :class:`PaddedToSquare`; None leaves the images as they are.

    Raises:
        ConfigError: if ``center_crop`` is not above 0 and at most 1, or ``pad_to_square`` is below 1.
    """
    source = source if center_crop == 1.0 else CenterCropped(source, center_crop)
    return source if pad_to_square is None else PaddedToSquare(source, pad_to_square)
