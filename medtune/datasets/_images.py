"""Images without a question or an answer: new images, for which a model shall write."""

import functools
import hashlib
import json
from pathlib import Path, PurePosixPath

from PIL import Image

from medtune.data.crops import changed_images
from medtune.data.image_names import hidden_part, safe_path
from medtune.data.images import ImageRoot
from medtune.data.opening import open_regular
from medtune.data.sample import Message, Sample, printable
from medtune.data.source import SampleSource
from medtune.datasets.image_column import SUFFIXES
from medtune.errors import DataError


class ImageFilesSource:
    """The image files of a folder or tar file; see :func:`images_dataset`."""

    def __init__(self, images: ImageRoot, by_folder: bool) -> None:
        self.images, self.name = images, images.path.stem
        groups: dict[str, list[str]] = {}
        for name in sorted(images.names()):
            path = PurePosixPath(name)
            if hidden_part(name) is None and path.suffix.lower() in SUFFIXES:
                groups.setdefault(path.parent.as_posix() if by_folder else name, []).append(name)
        if "." in groups:  # images of the folder itself
            groups[self.name] = groups.pop(".")
        if not groups:
            raise DataError(f"{images.path} holds no image; known suffixes are {', '.join(sorted(SUFFIXES))}.")
        self._groups = list(groups.items())

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._groups)

    def __getitem__(self, index: int) -> Sample:
        """Return a sample with an empty user turn."""
        id, names = self._groups[index]
        for name in names:
            safe_path(name, f"{self.images.path.name}, {printable(name)}")
        return Sample(printable(id), tuple(names), (Message("user", ""),))

    def open_images(self, sample: Sample) -> list[Image.Image]:
        """Decode a sample's images."""
        return [self.images.load(name, self.where(sample)) for name in sample.images]

    def image_sizes(self, sample: Sample) -> list[tuple[int, int]]:
        """Read the headers of a sample's images."""
        return [self.images.size(name, self.where(sample)) for name in sample.images]

    def image_roots(self) -> list[str]:
        """Return the folder or tar file."""
        return [str(self.images.path.resolve())]

    def image_files(self, sample: Sample) -> list[str]:
        """Return the files of a sample's images."""
        return self.images.files(sample.images)

    def where(self, sample: Sample) -> str:
        """Return folder and id of a sample."""
        return f"{self.images.path.name} (id {sample.id!r})"

    def fingerprint(self) -> str:
        """Return a SHA-256 of the images' names and contents: another image of the same name is another question."""
        return self._fingerprint

    @functools.cached_property
    def _fingerprint(self) -> str:
        settings = [type(self).__name__, self._groups, self.images.grey_bits]
        digest = hashlib.sha256(json.dumps(settings).encode("utf-8", "surrogatepass"))
        for path in dict.fromkeys(file for _, names in self._groups for file in self.images.files(names)):
            try:
                with open_regular(Path(path)) as file:
                    while block := file.read(1 << 20):
                        digest.update(block)
            except DataError as error:
                raise DataError(f"the image {path} {error}") from None
            except OSError as error:
                raise DataError(f"the image {path} cannot be read: {error}") from error
        return digest.hexdigest()


def images_dataset(
    source: str,
    by_folder: bool = False,
    center_crop: float = 1.0,
    pad_to_square: int | None = None,
    grey_bits: int | None = None,
) -> SampleSource:
    """The images of a folder, for ``predict`` with one question for all of them (``question``).

    Folders within the folder are read too; hidden files and files without the suffix of an image are passed over. The
    id of a sample is the path of its image.

    Args:
        source: the folder, or a ``.tar`` file.
        by_folder: whether all images of one folder, in the order of their names, are one sample, for example the
            views of a study; its id is the path of the folder.
        center_crop: share of each image's sides that is kept around the centre, as in training.
        pad_to_square: side in pixels of a black square that each image is fitted into, as in training.
        grey_bits: depth of the grey values in files of 16 bits; see :func:`medtune.datasets.jsonl_dataset`.

    Raises:
        ConfigError: for a ``center_crop``, ``pad_to_square`` or ``grey_bits`` that cannot be used.
        DataError: if the folder is absent or holds no image.
    """
    return changed_images(ImageFilesSource(ImageRoot(source, grey_bits), by_folder), center_crop, pad_to_square)
