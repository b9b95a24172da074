"""Conversations in LLaVA's layout as prepared data: the images are looked for once, and the missing ones are listed."""

from collections.abc import Iterator
from pathlib import Path

from medtune.data.sample import Sample
from medtune.datasets._llava_json import llava_json_dataset
from medtune.datasets.prepared import Prepared, Stream
from medtune.errors import ConfigError


def prepare_llava_json(source: str, name: str = "llava") -> Prepared:
    """Convert a JSON array of conversations to a training split, an item at a time.

    LLaVA-Med's files are such arrays (``llava_med_instruct_60k_inline_mention.json``); their images must be downloaded
    from PubMed Central, where some are gone. With the recipe's ``image_root``, samples with a missing or damaged image
    are refused or left out (``on_error``), counted, and listed in ``unusable_images.csv``.

    Args:
        source: the ``.json`` file; see :func:`medtune.datasets.llava_json_dataset`.
        name: name of the data set, for messages and the manifest.

    Raises:
        ConfigError: if the name is empty.
        DataError: if the file is absent or no JSON array; while it is read, for an item that is no conversation, or an
            id that occurs twice.
    """
    if not name.strip():
        raise ConfigError("data.name must not be empty.")
    rows = llava_json_dataset(source)
    summary = {"without_image": 0}

    def samples() -> Iterator[Sample]:
        summary["without_image"] = 0
        for index in range(len(rows)):
            sample = rows[index]
            summary["without_image"] += not sample.images
            yield sample

    return Prepared(
        name=name,
        splits={"train": Stream(samples)},
        inputs={"source": Path(source).expanduser()},
        options={},
        summary=summary,
    )
