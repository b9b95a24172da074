"""Samples from JSON Lines, the format that medtune writes."""

from collections.abc import Sequence

from medtune.data.chosen import chosen_rows
from medtune.data.crops import changed_images
from medtune.data.images import image_root_of
from medtune.data.source import JsonlSource, RepeatedIds, SampleSource
from medtune.datasets._mixture import joined


def jsonl_dataset(
    source: str | Sequence[str],
    image_root: str | None = None,
    center_crop: float = 1.0,
    pad_to_square: int | None = None,
    repeated_ids: RepeatedIds = "refuse",
    ignore_keys: Sequence[str] = (),
    grey_bits: int | None = None,
    where: dict[str, str | list[str]] | None = None,
) -> SampleSource:
    """Samples from a JSON Lines file: ``{"id", "images": [...], "messages": [{"role", "content"}], "meta": {}}``.

    Rows may also be in the layouts of OpenAI, Hugging Face and LLaVA (:func:`medtune.data.rows.sample_of`), and in one
    JSON array.

    Args:
        source: the ``.jsonl`` file, or a list of files.
        image_root: folder or ``.tar`` that the image paths are relative to; absent if no row has images.
        center_crop: share of each image's sides that is kept around the centre; 1 keeps the whole image.
        pad_to_square: side in pixels of a black square into which each image is resized (after the crop) without
            changing its aspect ratio; absent leaves the images as they are.
        repeated_ids: ``refuse`` makes it an error if two rows of a file have one id; ``number`` adds the row's number.
        ignore_keys: names of keys that are not read, although they could hold text or images.
        grey_bits: depth of the grey values in files of 16 bits, from 8 to 16; absent takes for each image the smallest
            depth that holds its largest value.
        where: values of ``meta`` by which rows are chosen, such as ``{task: counting}``; several values of a key may be
            given as a list. Absent reads all rows.

    Raises:
        ConfigError: for an unknown value of ``repeated_ids``, an empty list of files, a ``center_crop`` that is not
            above 0 and at most 1, a ``pad_to_square`` below 1, or ``grey_bits`` that are not from 8 to 16.
        DataError: if the file is absent or empty, the image root is absent, or no row is chosen.
    """
    images = image_root_of(image_root, grey_bits)
    samples = joined(source, lambda path: JsonlSource(path, images, repeated_ids, ignore_keys))
    return changed_images(chosen_rows(samples, where), center_crop, pad_to_square)
