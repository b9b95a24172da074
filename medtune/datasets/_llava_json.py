"""Conversations in LLaVA's layout."""

from collections.abc import Sequence

from medtune.data.images import image_root_of
from medtune.data.source import JsonlSource, RepeatedIds, SampleSource
from medtune.datasets._mixture import joined


class LlavaJsonSource(JsonlSource):
    """Rows of one JSON file; as :class:`~medtune.data.source.JsonlSource`, but repeated ids get numbers."""

    _usual: RepeatedIds = "number"


def llava_json_dataset(
    source: str | Sequence[str],
    image_root: str | None = None,
    repeated_ids: RepeatedIds = "number",
    ignore_keys: Sequence[str] = (),
    grey_bits: int | None = None,
) -> SampleSource:
    """Conversations from a JSON array ``[{"id", "image", "conversations": [{"from": "human", "value": ...}]}]``.

    ``image`` is a path, ``images`` a list of paths. ``<image>`` in a human turn marks the place of an image; without
    tags the images are at the start of the first human turn. ``system_prompt`` is a system message. JSON Lines, and
    rows in OpenAI's layout, are read too.

    Args:
        source: the ``.json`` file, read an item at a time, or a list of files.
        image_root: folder or ``.tar`` that the image paths are relative to; absent if no item has images.
        repeated_ids: ``number`` adds the item's number to an id that an earlier item has, because published files
            hold several conversations about one image under one id; ``refuse`` makes it an error.
        ignore_keys: names of keys that are not read, although they could hold text or images.
        grey_bits: depth of the grey values in files of 16 bits, from 8 to 16; absent takes for each image the smallest
            depth that holds its largest value.

    Raises:
        ConfigError: for an unknown value of ``repeated_ids``, an empty list of files, or ``grey_bits`` that are not
            from 8 to 16.
        DataError: if a file is absent or neither a JSON array nor JSON Lines, or the image root is absent.
    """
    images = image_root_of(image_root, grey_bits)
    return joined(source, lambda path: LlavaJsonSource(path, images, repeated_ids, ignore_keys))
