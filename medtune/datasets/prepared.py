"""What a door hands to the prepare recipe: the samples of each split, and what the manifest says of them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medtune.data.sample import Sample


@dataclass(frozen=True)
class Stream:
    """Samples that are made anew each time they are read, for splits that do not fit in memory.

    Attributes:
        make: starts the samples from the first one; the same samples each time.
    """

    make: Callable[[], Iterator[Sample]]

    def __iter__(self) -> Iterator[Sample]:
        """Yield the samples."""
        return self.make()


@dataclass(frozen=True)
class Prepared:
    """A data set turned into samples.

    Attributes:
        name: of the data set.
        splits: file name without suffix -> samples, a list or a :class:`Stream`; written as JSON Lines.
        inputs: name -> the owners' file, whose SHA-256 the manifest records.
        options: what decided the samples, for the manifest.
        tables: file name without suffix -> a small mapping, written as JSON beside the splits.
        summary: counts for the manifest; a stream may fill in its own while it is read.
        files: file name -> what yields its bytes, the same ones each time; written beside the splits.
        notes: what the user should know of the data, printed by the recipe.
    """

    name: str
    splits: Mapping[str, Iterable[Sample]]
    inputs: dict[str, Path]
    options: dict[str, Any]
    tables: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    files: Mapping[str, Callable[[], Iterator[bytes]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        """Return the number of samples of each split; streams are read for it."""
        return {name: sum(1 for _ in samples) for name, samples in self.splits.items()}

    def images(self) -> Iterator[tuple[str, str]]:
        """Yield each image path once, with the id of the first sample that names it."""
        seen: set[str] = set()
        for samples in self.splits.values():
            for sample in samples:
                for image in sample.images:
                    if image not in seen:
                        seen.add(image)
                        yield image, sample.id
