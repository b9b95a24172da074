"""One pass over the data before training, so that unusable rows are found before training starts."""

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from medtune.data.items import Items, ModelTransform, Sizes
from medtune.data.labels import is_classification
from medtune.data.preflight_record import Record, Table, file_stamp, file_stamps
from medtune.data.randomness import sample_rng
from medtune.data.sample import Sample
from medtune.data.source import SampleSource, image_files, image_roots, place
from medtune.data.training_set import OnError
from medtune.data.workers import Failure, InOrder
from medtune.errors import DataError, MedtuneError
from medtune.progress import tqdm

_LISTED = 10
_BLOCK = 128
_COLUMNS = ("usable", "lengths", "tiles", "longest", "most_tiles", "supervised", "labelled")


@dataclass(frozen=True)
class Problem:
    """A row that cannot be used.

    Attributes:
        id: the sample's id, or its row if it has none.
        reason: the whole message, with file and row.
    """

    id: str
    reason: str


@dataclass(frozen=True)
class Preflight:
    """The outcome of the pass; the arrays hold one number per usable sample.

    Attributes:
        rows: rows of the source.
        indices: position of each usable sample in the source.
        lengths: tokens of each in the first epoch: the longest of the rows that are the same in every epoch.
        tiles: image tiles of each, the largest number in these rows.
        longest: tokens of the longest of all rows that an item holds in any stage, in the first epoch.
        most_tiles: image tiles of each, the largest number in all these rows.
        supervised: tokens of each with a loss, in the rows that are the same in every epoch of the first stage.
        labelled: whether each is a classification question.
        problems: the rows left out; empty unless ``on_error`` was ``skip``.
    """

    rows: int
    indices: np.ndarray
    lengths: np.ndarray
    tiles: np.ndarray
    longest: np.ndarray
    most_tiles: np.ndarray
    supervised: np.ndarray
    labelled: np.ndarray
    problems: list[Problem]

    @property
    def usable(self) -> str:
        """Digest of the usable rows; a resumed run compares it with that of its checkpoint."""
        digest = hashlib.sha256(self.indices.astype("<i8").tobytes()).hexdigest()
        return f"{len(self.indices)} of {self.rows} rows ({digest[:16]})"


def preflight(
    source: SampleSource,
    transform: ModelTransform,
    items: Callable[[], Sequence[Items]],
    on_error: OnError = "raise",
    progress: bool = True,
    seed: int = 0,
    decode: bool = False,
    num_workers: int = 0,
    record: Record | None = None,
) -> Preflight:
    """Check every row of a source and measure it for the batch plan.

    Each row must be a sample with a unique id and a text of the assistant. Its images must be in their root and have
    valid headers. Every row of tokens that its items hold must fit the model.

    Args:
        source: the samples.
        transform: the model's transform; it measures tokens and tiles.
        items: returns the items of the run's stages; called only if rows must be read.
        on_error: ``raise`` raises an error that counts all problems, ``skip`` leaves those rows out and lists them.
        progress: show a bar with the time left.
        seed: the run's seed.
        decode: decode the images fully, which also finds truncated ones, at the cost of one epoch's decoding.
        num_workers: number of processes that read rows; 0 reads them in this process. The outcome is the same.
        record: where the outcome is kept, unless images are decoded. A row in the record is read again only if one of
            its image files was added, was removed or changed its size or time.

    Raises:
        DataError: if a row cannot be used and ``on_error`` is ``raise``, or if no row can be used.
    """
    if decode or image_roots(source) is None:
        record = None  # decoding checks more than a record stores; or the source cannot name its image files

    def look(rows: Sequence[int]) -> Table:
        distinct: list[Items] = []
        for stage_items in items():
            if stage_items not in distinct:
                distinct.append(stage_items)
        return _look(_Look(source, transform, distinct, seed, decode), rows, num_workers, progress)

    table = None if record is None else record.load(len(source))
    if table is None:
        table = look(range(len(source)))
        fresh = True
    else:
        table, fresh = _again(table, look, record.say if record else print, source.name)
    if record is not None and fresh:
        record.save(table)
    problems = [Problem(*problem) for problem in table.problems.values()]
    columns = dict(zip(_COLUMNS, table.numbers.astype(np.int64).T.copy(), strict=True))
    indices = np.flatnonzero(columns.pop("usable"))
    if problems and (on_error == "raise" or not len(indices)):
        raise DataError(_summary(source.name, problems, len(source)))
    arrays: dict[str, Any] = {name: values[indices] for name, values in columns.items()}
    arrays["labelled"] = arrays["labelled"].astype(bool)
    return Preflight(rows=len(source), indices=indices, problems=problems, **arrays)


def _again(
    table: Table, look: Callable[[Sequence[int]], Table], say: Callable[[str], None], name: str
) -> tuple[Table, bool]:
    """Read the rows whose files have changed; return the updated table, and whether anything changed."""
    stamps = file_stamps(table.names)
    changed = (stamps != table.stamps).any(axis=1)
    if not changed.any():
        return table, False
    rows = table.rows_of(changed)
    say(
        f"check {name}: {int(changed.sum()):,} of {len(changed):,} image files were added, removed or changed since "
        f"the last start; reading {len(rows):,} of {len(table.counts):,} rows"
    )
    return table.updated(rows, look(rows.tolist()), stamps), True


class _Watched:
    """A source that reads each sample and each header once per row, and records the image files that it reads."""

    def __init__(self, source: SampleSource, decode: bool) -> None:
        self.source, self.decode, self.name = source, decode, source.name
        self.begin()

    def begin(self) -> None:
        """Start the next row."""
        self.files: dict[bytes, tuple[int, int]] = {}
        self._samples: dict[int, Sample] = {}
        self._sizes: dict[tuple[str, tuple[str, ...]], Sizes] = {}

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        if index not in self._samples:
            self._samples[index] = self.source[index]
        return self._samples[index]

    def open_images(self, sample: Sample) -> list[Image.Image]:
        return self.source.open_images(sample)

    def image_sizes(self, sample: Sample) -> Sizes:
        key = (sample.id, sample.images)
        if key not in self._sizes:
            for path in map(os.fsencode, image_files(self.source, sample)):
                if path not in self.files:
                    self.files[path] = file_stamp(path)  # taken before the file is read, so that no change is missed
            if self.decode:
                self._sizes[key] = [image.size for image in self.source.open_images(sample)]
            else:
                self._sizes[key] = self.source.image_sizes(sample)
        return self._sizes[key]

    def where(self, sample: Sample) -> str:
        return place(self.source, sample)

    def fingerprint(self) -> str:
        return self.source.fingerprint()


class _Found(NamedTuple):
    """The outcome of some rows, sent from a worker."""

    numbers: list[tuple[int, ...]]
    problems: dict[int, tuple[str, str]]
    counts: list[int]
    names: list[bytes]
    stamps: list[tuple[int, int]]


class _Look(Dataset):
    """Checks rows of a source, addressed by lists of row numbers."""

    def __init__(
        self, source: SampleSource, transform: ModelTransform, items: Sequence[Items], seed: int, decode: bool
    ) -> None:
        self.source, self.transform, self.items = _Watched(source, decode), transform, items
        self.seed = seed

    def __getitem__(self, rows: Sequence[int]) -> _Found | Failure:
        found = _Found([], {}, [], [], [])
        for row in rows:
            self.source.begin()
            id = f"row {row + 1}"
            try:
                id = self.source[row].id
                found.numbers.append(self._numbers(row))
            except DataError as error:
                found.numbers.append((0,) * len(_COLUMNS))
                found.problems[row] = (id, str(error))
            except MedtuneError as error:
                return Failure.of(error)
            found.counts.append(len(self.source.files))
            found.names.extend(self.source.files)
            found.stamps.extend(self.source.files.values())
        return found

    def _numbers(self, row: int) -> tuple[int, ...]:
        """Return the columns of one row."""
        stages = [
            items.measure(self.source, row, sample_rng(self.seed, 0, row), self.transform) for items in self.items
        ]
        every = [size for sizes in stages for size in sizes]
        planned = [size for size in every if not size.drawn]
        return (
            True,
            max(size.tokens for size in planned),
            max(size.tiles for size in planned),
            max(size.tokens for size in every),
            max(size.tiles for size in every),
            sum(size.supervised for size in stages[0] if not size.drawn),
            is_classification(self.source[row]),
        )


def _look(look: _Look, rows: Sequence[int], num_workers: int, progress: bool) -> Table:
    """Check rows in several processes."""
    blocks = [rows[at : at + _BLOCK] for at in range(0, len(rows), _BLOCK)]
    numbers, counts, stamps = [], [], []
    problems: dict[int, tuple[str, str]] = {}
    names: list[bytes] = []
    bar = tqdm(total=len(rows), desc=f"check {look.source.name}", unit="row", disable=not progress, leave=False)
    with bar, closing(InOrder(look, blocks, min(num_workers, len(blocks)))) as results:
        for at, block in enumerate(blocks):
            found: _Found = results.next()
            numbers.append(_array(found.numbers, len(_COLUMNS)))
            counts.append(np.asarray(found.counts, dtype=np.int32))
            stamps.append(_array(found.stamps, 2))
            names += found.names
            place_of = {row: at * _BLOCK + slot for slot, row in enumerate(block)}
            problems |= {place_of[row]: problem for row, problem in found.problems.items()}
            bar.update(len(block))
    return Table.of(np.concatenate(numbers), problems, np.concatenate(counts), names, np.concatenate(stamps))


def _array(values: Iterable[tuple[int, ...]], width: int) -> np.ndarray:
    return np.asarray(list(values), dtype=np.int64).reshape(-1, width)


def _summary(name: str, problems: list[Problem], rows: int) -> str:
    shown = "\n".join(f"  {problem.reason}" for problem in problems[:_LISTED])
    rest = f"\n  ... and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
    return (
        f"{len(problems)} of {rows} rows of {name} cannot be used:\n{shown}{rest}\n"
        "Mend them, or set on_error: skip to leave them out and list them in the run's summary."
    )
