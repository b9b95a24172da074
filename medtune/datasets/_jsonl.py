"""Samples from JSON Lines, the format that medtune writes."""

from medtune.data.crops import CenterCropped, PaddedToSquare
from medtune.data.images import image_root_of
from medtune.data.source import JsonlSource, SampleSource


def jsonl_dataset(
    source: str,
    image_root: str | None = None,
    center_crop: float = 1.0,
    pad_to_square: int | None = None,
    grey_bits: int | None = None,
) -> SampleSource:
    """Samples from a JSON Lines file: ``{"id", "images": [...], "messages": [{"role", "content"}], "meta": {}}``.

    Args:
        source: the ``.jsonl`` file.
        image_root: folder or ``.tar`` that the image paths are relative to; absent if no row has images.
        center_crop: share of each image's sides that is kept around the centre; 1 keeps the whole image.
        pad_to_square: side in pixels of a black square into which each image is resized (after the crop) without
            changing its aspect ratio; absent leaves the images as they are.
        grey_bits: depth of the grey values in files of 16 bits, from 8 to 16; absent takes for each image the smallest
            depth that holds its largest value.

    Raises:
        ConfigError: if ``center_crop`` is not above 0 and at most 1, ``pad_to_square`` is below 1, or ``grey_bits`` is
            not from 8 to 16.
        DataError: if the file is absent or empty, or the image root is absent.
    """
    samples: SampleSource = JsonlSource(source, image_root_of(image_root, grey_bits))
    samples = samples if center_crop == 1.0 else CenterCropped(samples, center_crop)
    return samples if pad_to_square is None else PaddedToSquare(samples, pad_to_square)
