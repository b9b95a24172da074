"""A source that is made of another one and passes through what it does not change."""

from PIL import Image

from medtune.data.features import picture_keys
from medtune.data.sample import Sample
from medtune.data.source import SampleSource, image_files, image_roots, place


class PassingSource:
    """A source whose samples, images and messages are those of another source, until a subclass changes some of them.

    A subclass writes its own ``fingerprint``, because what it changes decides the samples too.

    Args:
        source: the samples.
    """

    def __init__(self, source: SampleSource) -> None:
        self.source = source
        self.name = source.name

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        """Return a sample."""
        return self.source[index]

    def open_images(self, sample: Sample) -> list[Image.Image]:
        """Decode a sample's images."""
        return self.source.open_images(sample)

    def image_sizes(self, sample: Sample) -> list[tuple[int, int]]:
        """Read the headers of a sample's images."""
        return self.source.image_sizes(sample)

    def picture_keys(self, sample: Sample) -> list[str]:
        """Return the keys of the underlying source."""
        return picture_keys(self.source, sample)

    def image_roots(self) -> list[str] | None:
        """Return the roots of the underlying source."""
        return image_roots(self.source)

    def image_files(self, sample: Sample) -> list[str]:
        """Return the files of the underlying source."""
        return image_files(self.source, sample)

    def where(self, sample: Sample) -> str:
        """Return the text that names a sample in a message."""
        return place(self.source, sample)
