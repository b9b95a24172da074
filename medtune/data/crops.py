"""Sources whose images are cut to their centre, for data sets whose subject stands in the middle of a wide picture."""

import hashlib

from PIL import Image

from medtune.data.sample import Sample
from medtune.data.source import SampleSource, place
from medtune.errors import ConfigError


def central_box(width: int, height: int, share: float) -> tuple[int, int, int, int]:
    """Return left, upper, right, lower of the middle ``share`` of each side, in pixels; at least one pixel."""
    kept_width, kept_height = max(1, round(width * share)), max(1, round(height * share))
    left, upper = (width - kept_width) // 2, (height - kept_height) // 2
    return left, upper, left + kept_width, upper + kept_height


class CenterCropped:
    """A source with the middle of its images.

    Args:
        source: the samples.
        share: how much of each side is kept, above 0 and at most 1.

    Raises:
        ConfigError: for a share outside that range.
    """

    def __init__(self, source: SampleSource, share: float) -> None:
        if not 0.0 < share <= 1.0:
            raise ConfigError(f"center_crop is {share}; it must be above 0 and at most 1 (the whole image).")
        self.source, self.share = source, share
        self.name = source.name

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        """Return a sample."""
        return self.source[index]

    def open_images(self, sample: Sample) -> list[Image.Image]:
        """Decode a sample's images and cut them."""
        return [image.crop(central_box(*image.size, self.share)) for image in self.source.open_images(sample)]

    def image_sizes(self, sample: Sample) -> list[tuple[int, int]]:
        """Sizes after the cut."""
        boxes = [central_box(width, height, self.share) for width, height in self.source.image_sizes(sample)]
        return [(right - left, lower - upper) for left, upper, right, lower in boxes]

    def where(self, sample: Sample) -> str:
        """Return what names a sample in a message."""
        return place(self.source, sample)

    def fingerprint(self) -> str:
        """Return a SHA-256 of the source's fingerprint and the share."""
        return hashlib.sha256(f"{self.source.fingerprint()}|{self.share}".encode()).hexdigest()
