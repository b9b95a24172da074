"""Several sources combined into one."""

import dataclasses
import hashlib
import random
from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any

import numpy as np
from PIL import Image

from medtune.config import Component, instantiate
from medtune.data.features import picture_keys
from medtune.data.sample import Sample, printable
from medtune.data.source import SampleSource, image_files, image_roots, place
from medtune.errors import ConfigError


class MixtureSource:
    """Samples of several sources, each as often as its weight says; ids become ``part/id``."""

    def __init__(self, parts: Sequence[tuple[SampleSource, float]], seed: int) -> None:
        self.name = "mixture"
        self._parts: dict[str, SampleSource] = {}
        tables = []
        for number, (source, weight) in enumerate(parts):
            own = printable(source.name)  # as it will be in the samples' ids
            name = own if own not in self._parts else f"{own}-{number}"
            self._parts[name] = source
            rows = np.asarray(_repeated(len(source), weight, seed + number), dtype=np.int64)
            tables.append(np.stack([np.full_like(rows, number), rows]))
        self._number, self._row = np.concatenate(tables, axis=1)
        self._names = list(self._parts)
        self._weights = [weight for _, weight in parts]
        self._seed = seed

    def parts(self) -> list[SampleSource]:
        """Return the combined sources, in order."""
        return list(self._parts.values())

    def __len__(self) -> int:
        """Return the number of samples of an epoch, repeats included."""
        return len(self._row)

    def __getitem__(self, index: int) -> Sample:
        """Return a sample of the part that contains the index."""
        if not 0 <= index < len(self):
            raise IndexError(f"the mixture has {len(self)} samples, there is no number {index}")
        name = self._names[int(self._number[index])]
        sample = self._parts[name][int(self._row[index])]
        return dataclasses.replace(sample, id=f"{name}/{sample.id}")

    def open_images(self, sample: Sample) -> list[Image.Image]:
        """Decode a sample's images in the part it comes from."""
        source, inner = self._in_part(sample)
        return source.open_images(inner)

    def image_sizes(self, sample: Sample) -> list[tuple[int, int]]:
        """Read the headers of a sample's images in the part it comes from."""
        source, inner = self._in_part(sample)
        return source.image_sizes(inner)

    def picture_keys(self, sample: Sample) -> list[str]:
        """Return keys that identify images across all parts: the part, and the key within the part."""
        source, inner = self._in_part(sample)
        part = sample.id.partition("/")[0]
        return [f"{part}/{key}" for key in picture_keys(source, inner)]

    def image_roots(self) -> list[str] | None:
        """Return the roots of all parts, in order; None if a part does not know its roots."""
        roots = [image_roots(source) for source in self._parts.values()]
        return None if None in roots else [root for some in roots for root in some or []]

    def image_files(self, sample: Sample) -> list[str]:
        """Return the files that hold a sample's images in the part it comes from."""
        source, inner = self._in_part(sample)
        return image_files(source, inner)

    def where(self, sample: Sample) -> str:
        """Return file, row and id of a sample in the part it comes from."""
        source, inner = self._in_part(sample)
        return place(source, inner)

    def fingerprint(self) -> str:
        """Return a SHA-256 of the parts' fingerprints, their weights and the seed."""
        parts = [source.fingerprint() for source in self._parts.values()]
        return hashlib.sha256(repr((parts, self._weights, self._seed)).encode()).hexdigest()

    def _in_part(self, sample: Sample) -> tuple[SampleSource, Sample]:
        """Return the part that a sample comes from, and the sample with its id in that part."""
        name, _, part_id = sample.id.partition("/")
        return self._parts[name], dataclasses.replace(sample, id=part_id)


def joined(paths: str | PathLike[str] | Sequence[str], build: Callable[[str], SampleSource]) -> SampleSource:
    """Build the source of one file, or of several files one after the other, as a mixture with weight 1.

    Args:
        paths: a file, or a list of files.
        build: makes the source of one file.

    Raises:
        ConfigError: for an empty list.
    """
    if isinstance(paths, str | PathLike):
        return build(str(paths))
    if not paths:
        raise ConfigError("source: the list of files is empty; name at least one.")
    return build(paths[0]) if len(paths) == 1 else MixtureSource([(build(path), 1.0) for path in paths], seed=0)


def _repeated(rows: int, weight: float, seed: int) -> list[int]:
    """Return the rows for a weight: whole copies, and a fixed random subset for the fraction."""
    whole = int(weight)
    rest = random.Random(seed).sample(range(rows), round((weight - whole) * rows))
    return [*range(rows)] * whole + sorted(rest)


def mixture_dataset(parts: list[dict[str, Any]], seed: int = 0) -> MixtureSource:
    """Combine several datasets into one, for example conversations with and without images.

    Args:
        parts: components, each with an optional ``weight``: how often the part's samples occur in an epoch. 1 (the
            default) is once, 2 is twice, 0.25 is a fixed random quarter.
        seed: seed of the choice of rows for fractions.

    Raises:
        ConfigError: for no parts, a weight that is not positive, or a part that yields no sample.
    """
    if not parts:
        raise ConfigError("A mixture needs at least one part; list datasets under 'parts'.")
    sources = []
    for number, part in enumerate(parts, start=1):
        weight = part.get("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not weight > 0:
            raise ConfigError(f"mixture, part {number}: the weight must be a number above 0, not {weight!r}.")
        source = instantiate(Component({key: value for key, value in part.items() if key != "weight"}))
        if round(weight * len(source)) < 1:
            raise ConfigError(f"mixture, part {number}: a weight of {weight} of {len(source)} samples leaves none.")
        sources.append((source, float(weight)))
    return MixtureSource(sources, seed)


mixture_dataset.keys_of_components = {"parts": ("weight",)}  # type: ignore[attr-defined]
