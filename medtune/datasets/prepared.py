"""The result of a converter, which the prepare recipe writes: the samples of each split, and facts for the manifest."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medtune.data.sample import Sample


@dataclass(frozen=True)
class Stream:
    """Samples that are made again each time they are read, for splits that do not fit in memory.

    Attributes:
        make: returns an iterator that starts at the first sample; the same samples each time.
    """

    make: Callable[[], Iterator[Sample]]

    def __iter__(self) -> Iterator[Sample]:
        """Yield the samples."""
        return self.make()


@dataclass(frozen=True)
class Prepared:
    """A data set converted to samples.

    Attributes:
        name: name of the data set.
        splits: file name without suffix -> samples, a list or a :class:`Stream`; written as JSON Lines.
        inputs: name -> the published file, whose SHA-256 the manifest records.
        options: options that decided the samples, for the manifest.
        tables: file name without suffix -> a small mapping, written as JSON next to the splits.
        summary: counts for the manifest; a stream may add its counts while it is read.
        files: file name -> a function that yields its bytes, the same each time; written next to the splits.
        notes: what the user should know about the data; the recipe prints them.
        patient_of: returns a sample's patient, or empty text if it is unknown; None reads it from ``meta``.
    """

    name: str
    splits: Mapping[str, Iterable[Sample]]
    inputs: dict[str, Path]
    options: dict[str, Any]
    tables: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    files: Mapping[str, Callable[[], Iterator[bytes]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    patient_of: Callable[[Sample], str] | None = None

    def counts(self) -> dict[str, int]:
        """Return the number of samples of each split; this reads streams."""
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
