"""CT and MR: chosen slices of volumes as several images of a sample, in a fixed order."""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from medtune.data.archives import png_bytes, tar_blocks
from medtune.data.image_names import safe_path, said_of_similar
from medtune.data.image_stores import Folder
from medtune.data.sample import IMAGE_TAG, Message, Sample
from medtune.data.source import place
from medtune.data.tables import read_table
from medtune.data.volumes import Choice, Plane, Volume, open_volume
from medtune.datasets._jsonl import jsonl_dataset
from medtune.datasets._llava_json import llava_json_dataset
from medtune.datasets.prepared import Prepared
from medtune.errors import ConfigError, DataError

IMAGES = "images.tar"
_SLICES = "#slices="
_LISTED = 5


def prepare_volumes(
    rows: str | dict[str, str],
    volumes: str,
    plane: Plane = "axial",
    slices: int | list[int] = 8,
    margin: float = 0.1,
    window: list[float] | None = None,
    channel: int | None = None,
    volume_column: str = "volume",
    text_column: str = "text",
    question_column: str | None = None,
    id_column: str | None = None,
    on_error: Literal["raise", "skip"] = "raise",
) -> Prepared:
    """Convert rows about volumes to samples with one image for each chosen slice.

    The slices are written as 8-bit PNG into ``images.tar`` next to the rows, which is their image root. An image of a
    row that is a volume becomes its slices, in their order; an ``<image>`` tag becomes as many tags. Everything else of
    the row stays.

    A row may choose slices of its own: ``case7.nii.gz#slices=30,42,57`` are these indices in the file's array.

    Args:
        rows: a file, or a mapping from split to file. ``.jsonl`` and ``.json`` (LLaVA's layout) name volumes where
            images are named; a ``.csv`` has a row for each volume.
        volumes: the folder of the volumes: NIfTI (``.nii``, ``.nii.gz``), ``.mgz``, or a folder for each DICOM series.
        plane: ``axial``, ``coronal`` or ``sagittal``.
        slices: number of slices at equal distances, from the feet up (coronal: from the back, sagittal: from the
            patient's left), whatever the order in the file; or indices in the file's array, in the order of the images.
        margin: share of the slices that is left out at each end, if ``slices`` is a number.
        window: centre and width of the values shown, in HU for CT: ``[40, 400]`` soft tissue, ``[-600, 1500]`` lung,
            ``[40, 80]`` brain, ``[400, 1800]`` bone; null shows each volume from its 0.5th to its 99.5th percentile.
        channel: index along the fourth dimension, for files that have one.
        volume_column: column of a CSV with the volume's path.
        text_column: column of a CSV with the report, or the answer.
        question_column: column of a CSV with the question; null makes image-report pairs.
        id_column: column of a CSV with a unique id; null makes ids of file and line.
        on_error: ``skip`` leaves out, counts and lists rows whose volume cannot be opened.

    Raises:
        ConfigError: for an unknown plane, or slices, a margin or a window out of range.
        DataError: for a file that is absent, a row without a volume, or a volume that cannot be used.
    """
    chosen = Choice(plane, slices if isinstance(slices, int) else tuple(slices), margin, _pair(window))
    if on_error not in ("raise", "skip"):
        raise ConfigError(f"on_error: {on_error!r} is unknown; use raise or skip.")
    files = {name: Path(file).expanduser() for name, file in _named(rows).items()}
    columns = (volume_column, text_column, question_column, id_column)
    opened = _Volumes(Path(volumes).expanduser(), chosen, channel)
    splits: dict[str, list[Sample]] = {}
    problems: dict[str, list[str]] = {}
    said: list[str] = []
    for name, file in files.items():
        splits[name] = []
        for where, sample in _samples(file, columns):
            try:
                splits[name].append(opened.converted(sample, where))
            except DataError as error:
                said.append(str(error))
                problems.setdefault(name, []).append(sample.id)
    if said and (on_error == "raise" or not any(splits.values())):
        raise DataError(
            f"{len(said)} rows cannot be used; the first: {said[0]}\n"
            "Correct them, or set data.on_error=skip to leave them out."
        )
    return Prepared(
        name="volumes",
        splits=splits,
        inputs={f"rows_{name}": file for name, file in files.items()},
        options={
            "plane": plane,
            "slices": slices,
            "margin": margin,
            "window": window,
            "channel": channel,
        },
        summary={
            "volumes": len(opened.shown),
            "slices": sum(len(indices) for indices in opened.shown.values()),
            **({"volumes_left_out": problems} if problems else {}),
        },
        files={IMAGES: lambda: tar_blocks(opened.images())},
        notes=[*opened.notes(), *([f"{len(said)} rows were left out; the first: {said[0]}"] if said else [])],
    )


class _Volumes:
    """The volumes that rows name: opened once for their headers, and once more for their slices."""

    def __init__(self, root: Path, choice: Choice, channel: int | None) -> None:
        if not root.is_dir():
            raise DataError(f"The folder of volumes {root} does not exist; correct 'volumes'.")
        self._root, self._choice, self._channel = root, choice, channel
        self._store = Folder(root)
        self.shown: dict[str, dict[int, None]] = {}
        self._known: dict[tuple[str, tuple[int, ...] | None], list[int] | str] = {}
        self._unoriented: list[str] = []
        self._with_gaps: list[str] = []

    def converted(self, sample: Sample, where: str) -> Sample:
        """Return a sample with the slices of its volumes, which are noted for :meth:`images`."""
        if not sample.images:
            raise DataError(f"{where}: the row names no volume; add one, or remove the row.")
        groups = []
        for reference in sample.images:
            name, own = _own_slices(reference, where)
            groups.append([(name, index) for index in self._indices(name, own, where)])
        for name, index in (one for group in groups for one in group):
            self.shown.setdefault(name, {})[index] = None
        images = tuple(self._image(name, index) for group in groups for name, index in group)
        return replace(sample, images=images, messages=_with_tags(sample.messages, [len(group) for group in groups]))

    def images(self) -> Iterator[tuple[str, bytes]]:
        """Yield path and PNG of each slice, volume after volume.

        Raises:
            DataError: if a volume is damaged.
        """
        for name, indices in self.shown.items():
            try:
                volume = open_volume(self._root / name, self._channel)
                limits = volume.limits(self._choice.window)
                for index in sorted(indices):
                    yield self._image(name, index), png_bytes(volume.image(self._choice.plane, index, limits))
            except DataError as error:
                raise DataError(f"the volume {name} {error}") from None

    def notes(self) -> Iterator[str]:
        """Yield sentences about volumes whose slices may not be as expected."""
        for names, said in (
            (self._unoriented, "name no orientation, so that left and right may be exchanged"),
            (self._with_gaps, "have gaps between their slices; are files of the series missing?"),
        ):
            if names:
                shown = ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")
                yield f"{len(names)} volumes ({shown}) {said}"

    def _image(self, name: str, index: int) -> str:
        return f"{name}/{self._choice.plane}_{index:04}.png"

    def _indices(self, name: str, own: tuple[int, ...] | None, where: str) -> list[int]:
        """Return the slices of a volume; its header is read once, and what was wrong is said again for each row."""
        key = (name, own)
        if key not in self._known:
            try:
                self._known[key] = self._choice.indices(self._opened(name), own)
            except DataError as error:
                self._known[key] = str(error)
        found = self._known[key]
        if isinstance(found, str):
            raise DataError(f"{where}: {found if found.startswith('the ') else f'the volume {name} {found}'}")
        return found

    def _opened(self, name: str) -> Volume:
        relative = safe_path(name, f"the volume {name}")
        path = Path(os.path.realpath(self._root / relative))
        if not path.is_relative_to(os.path.realpath(self._root)):
            raise DataError(f"the volume {name} is a link that leaves the folder of volumes; copy it there.")
        if not path.exists():
            similar = self._store.similar(relative)
            if similar is not None:
                raise DataError(said_of_similar(name, similar, self._root))
            raise DataError(f"the volume {name} is not in {self._root}; correct the path, or add it.")
        volume = open_volume(path, self._channel)
        if not volume.oriented:
            self._unoriented.append(name)
        if volume.gaps:
            self._with_gaps.append(name)
        return volume


def _samples(file: Path, columns: tuple[str, str, str | None, str | None]) -> Iterator[tuple[str, Sample]]:
    """Yield file and row, and the sample whose images are volumes."""
    if file.suffix.lower() in (".csv", ".gz"):
        yield from _table(file, *columns)
        return
    build: Callable[[str], Any] = {".jsonl": jsonl_dataset, ".json": llava_json_dataset}.get(file.suffix.lower())  # type: ignore[assignment]
    if build is None:
        raise DataError(f"{file}: rows must be a .jsonl, .json or .csv file.")
    source = build(str(file))
    for index in range(len(source)):
        sample = source[index]
        yield place(source, sample), sample


def _table(file: Path, volume: str, text: str, question: str | None, id: str | None) -> Iterator[tuple[str, Sample]]:
    required = [volume, text, *(column for column in (question, id) if column)]
    seen: dict[str, str] = {}
    for where, row in read_table(file, required):
        for column in required:
            if not row[column]:
                raise DataError(f"{where}: the cell of column {column!r} is empty; fill it in, or remove the row.")
        own = row[id] if id else f"{file.stem}:{where.rpartition(' ')[2]}"
        if own in seen:
            raise DataError(f"{where}: the id is also that of {seen[own]}; give each row its own.")
        seen[own] = where
        asked = (Message("user", row[question]),) if question else ()
        yield where, Sample(own, (row[volume],), (*asked, Message("assistant", row[text])))


def _with_tags(messages: Sequence[Message], counts: Sequence[int]) -> tuple[Message, ...]:
    """Return turns in which each image tag is repeated as often as its volume has slices."""
    left = list(counts)

    def repeated(_: re.Match[str]) -> str:
        return IMAGE_TAG * left.pop(0)

    return tuple(replace(turn, content=re.sub(re.escape(IMAGE_TAG), repeated, turn.content)) for turn in messages)


def _own_slices(reference: str, where: str) -> tuple[str, tuple[int, ...] | None]:
    name, mark, listed = reference.rpartition(_SLICES)
    if not mark:
        return reference, None
    if not re.fullmatch(r"[0-9]{1,6}(,[0-9]{1,6})*", listed):
        raise DataError(f"{where}: the slices in {reference!r} must be whole numbers from 0 on, joined by commas.")
    return name, tuple(int(number) for number in listed.split(","))


def _named(rows: str | Mapping[str, str]) -> dict[str, str]:
    if isinstance(rows, Mapping):
        if not rows:
            raise ConfigError("rows: name at least one file.")
        return {str(name): str(file) for name, file in rows.items()}
    return {"train": rows}


def _pair(window: Sequence[float] | None) -> tuple[float, float] | None:
    if window is None:
        return None
    if len(window) != 2:
        raise ConfigError("window must be a centre and a width above 0, for example [40, 400] for soft tissue in HU.")
    return float(window[0]), float(window[1])
