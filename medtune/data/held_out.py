"""A part of a source for training and another one for validation, divided by image."""

import hashlib
from collections.abc import Iterator
from typing import Literal

from medtune.data.passing import PassingSource
from medtune.data.sample import Sample
from medtune.data.source import SampleSource
from medtune.errors import ConfigError, DataError

Part = Literal["training", "validation"]


class PartByImage(PassingSource):
    """The training or the validation part of a source; samples that share an image are in the same part.

    A group of samples is drawn by a hash of the first of its images' names in alphabetical order, so that the order of
    the rows does not matter. A sample without images is a group of its own, by its id. A row that cannot be read is in
    both parts, so that the data check names it.

    Args:
        source: the samples.
        part: which part.
        share: share of the groups that are for validation, on average.

    Raises:
        ConfigError: for an unknown part, or a share that is not between 0 and 1.
        DataError: if the part is empty.
    """

    def __init__(self, source: SampleSource, part: Part, share: float) -> None:
        super().__init__(source)
        if part not in ("training", "validation"):
            raise ConfigError(f"part: {part!r} is unknown; use training, validation or null.")
        if not 0 < share < 1:
            raise ConfigError(f"validation_share is {share}; it must be between 0 and 1.")
        self._choice = f"{part} {share!r}"
        groups = _groups(source)
        held_out = part == "validation"
        self._rows = [row for row, group in enumerate(groups) if group is None or (_number(group) < share) == held_out]
        if not self._rows:
            raise DataError(
                f"{source.name}: the {part} part of {len({*groups})} images is empty; change validation_share."
            )

    def __len__(self) -> int:
        """Return the number of samples of the part."""
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        """Return a sample of the part."""
        return self.source[self._rows[index]]

    def fingerprint(self) -> str:
        """Return a SHA-256 of the source and the part."""
        return hashlib.sha256(f"{self._choice} by image of {self.source.fingerprint()}".encode()).hexdigest()


def part_by_image(source: SampleSource, part: Part | None, share: float) -> SampleSource:
    """Return a part of a source, or the whole source if no part is named."""
    return source if part is None else PartByImage(source, part, share)


def _groups(source: SampleSource) -> list[str | None]:
    """Return a name for the group of each row: the first of all images that its samples show; None if unreadable."""
    first: dict[str, str] = {}  # image -> an image of its group that comes before it, or itself

    def root(name: str) -> str:
        while first.setdefault(name, name) != name:
            name = first[name]
        return name

    rows = list(_rows(source))
    for row in rows:
        for one in row[1:] if row else ():
            low, high = sorted((root(row[0]), root(one)))
            first[high] = low
    return [root(row[0]) if row else None for row in rows]


def _rows(source: SampleSource) -> Iterator[tuple[str, ...]]:
    for index in range(len(source)):
        try:
            sample = source[index]
        except DataError:
            yield ()
            continue
        yield tuple(map(str, sample.images)) or (f"no image\0{sample.id}",)


def _number(group: str) -> float:
    """Return a number from 0 to below 1 that depends on the name alone."""
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:8]) / 2**64
