"""Which images of a source are asked about: each one once, all of them or a random choice."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from medtune.data.randomness import sample_rng
from medtune.data.source import SampleSource
from medtune.errors import ConfigError, DataError


@dataclass(frozen=True)
class Picture:
    """What one sample shows: an image, or several that belong together.

    Attributes:
        id: Id of the first row that shows it.
        images: Paths of the images, relative to the image root.
    """

    id: str
    images: tuple[str, ...]


@dataclass(frozen=True)
class Chosen:
    """The pictures of a run.

    Attributes:
        pictures: In the order of the source.
        counts: Rows of the source, rows without an image, different pictures in the source, pictures of the run.
    """

    pictures: list[Picture]
    counts: dict[str, int]


def choose_pictures(
    source: SampleSource, limit: int | None, seed: int, refuse: Callable[[str, DataError], None]
) -> Chosen:
    """Read the rows of a source and choose pictures. Messages of the rows are not used.

    Args:
        source: The rows.
        limit: Size of a random choice; None takes all pictures.
        seed: Seed of the choice.
        refuse: Called with the name and the error of a row that cannot be read; may raise.

    Raises:
        ConfigError: If no row shows an image.
    """
    found: dict[tuple[str, ...], Picture] = {}
    without = 0
    for index in range(len(source)):
        try:
            sample = source[index]
        except DataError as error:
            refuse(f"{source.name}[{index}]", error)
            continue
        without += not sample.images
        if sample.images:
            found.setdefault(sample.images, Picture(sample.id, sample.images))
    if not found:
        raise ConfigError(f"{source.name}: no row shows an image, so there is nothing to ask about; check images")
    places: Sequence[int] = range(len(found))
    if limit is not None and limit < len(found):
        places = sorted(sample_rng(seed, 0, 0, stream="pictures").sample(places, limit))
    every = list(found.values())
    counts = {"rows": len(source), "rows_without_image": without, "images": len(every), "chosen": len(places)}
    return Chosen([every[place] for place in places], counts)
