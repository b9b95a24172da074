"""FLARE's 2D questions as a source of samples, and as prepared data."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from medtune.data.images import ImageRoot
from medtune.data.sample import Sample
from medtune.data.source import SampleSource
from medtune.datasets._mixture import MixtureSource
from medtune.datasets.flare.layout import SPLITS, QuestionFile, question_files, split_name
from medtune.datasets.flare.source import Choice, FlareFile, OneImageEach, holds_rows
from medtune.datasets.flare.task_types import task_type
from medtune.datasets.prepared import Prepared, Stream
from medtune.errors import ConfigError, DataError


def flare(
    root: str,
    split: str,
    tasks: Sequence[str] | None = None,
    datasets: Sequence[str] | None = None,
    explode_images: bool = False,
    image_root: str | None = None,
    image_folders: Mapping[str, str] | None = None,
    grey_bits: int | None = None,
) -> SampleSource:
    """FLARE's 2D questions in their official layout, for training, prediction and evaluation.

    A sample's id is ``<dataset>/<split>/<row>``, and ``meta`` holds ``task`` (normalised), ``dataset``, ``modality``,
    ``split`` and ``answer``. Rows without an answer are read in all splits but the training split. A box of an answer
    that is turned around or lies outside of its image is an error that names file and row, and so is a missing image;
    training counts and lists such rows with ``on_error: skip``.

    Args:
        root: folder of the splits (``training``, ``validation-public``, ...), of one split, or of one data set.
        split: ``train``, ``validation_public``, ``validation_hidden`` or ``test``; the folders' names are read too.
        tasks: tasks that are read, by any of their names; absent reads all.
        datasets: data sets that are read, such as ``[BUSI, BUSI-det]``; absent reads all.
        explode_images: one sample for each image of a question, as the official training file has; the default keeps
            all images of a question together.
        image_root: folder or ``.tar`` of the images, with the same folders below it; absent is the root.
        image_folders: first folder of image names -> the folder that is there in its place, such as
            ``{imagesTr: JPEGImages}``.
        grey_bits: depth of the grey values in files of 16 bits; see :func:`medtune.datasets.jsonl_dataset`.

    Raises:
        ConfigError: for an unknown split, task or data set.
        DataError: if there is no such folder, file or row.
    """
    files = question_files(Path(root).expanduser(), split_name(split), _several(datasets, "datasets"))
    found = _sources(files, _images(root, image_root, grey_bits), _choice(tasks, image_folders))
    if not found:
        raise DataError(f"{root}: the split {split} holds no question of the tasks {', '.join(tasks or ())}.")
    parts: list[tuple[SampleSource, float]] = [(OneImageEach(one) if explode_images else one, 1.0) for one in found]
    source = MixtureSource(parts, seed=0)
    source.name = "flare"
    return source


def prepare_flare(
    root: str,
    tasks: Sequence[str] | None = None,
    datasets: Sequence[str] | None = None,
    explode_images: bool = False,
    image_folders: Mapping[str, str] | None = None,
) -> Prepared:
    """Convert all splits of FLARE's 2D questions; arguments as for :func:`flare`.

    Image paths stay relative to the root. Boxes are held against the images that are there.

    Raises:
        ConfigError: for an unknown task or data set.
        DataError: as :func:`flare`, and for the first row that cannot be used.
    """
    folder = Path(root).expanduser()
    files = question_files(folder, None, _several(datasets, "datasets"))
    choice = _choice(tasks, image_folders)
    images = ImageRoot(folder)
    splits: dict[str, Stream] = {}
    counts: dict[str, dict[str, int]] = {}
    for split in SPLITS:
        found = _sources([file for file in files if file.split == split], images, choice)
        if found:
            splits[split] = Stream(lambda found=found: _checked(found, explode_images))  # type: ignore[misc]
            tally = Counter(f"{s.meta['dataset']}, {s.meta['task']}" for one in found for s in _rows(one))
            counts[split] = dict(sorted(tally.items()))
    if not splits:
        raise DataError(f"{root} holds no question of the tasks {', '.join(tasks or ())}.")
    return Prepared(
        name="flare",
        splits=splits,
        inputs={file.path.name if len(files) == 1 else f"{file.split}/{file.path.name}": file.path for file in files},
        options={"tasks": sorted(choice.tasks), "explode_images": explode_images},
        summary={"questions": counts},
    )


def _sources(files: Sequence[QuestionFile], images: ImageRoot, choice: Choice) -> list[FlareFile]:
    return [found for file in files if (found := holds_rows(file, images, choice)) is not None]


def _rows(source: SampleSource) -> Iterator[Sample]:
    return (source[index] for index in range(len(source)))


def _checked(found: Sequence[FlareFile], explode: bool) -> Iterator[Sample]:
    """Yield the samples of several files under their ids, after the check of boxes against the images at hand."""
    for file in found:
        for sample in _rows(file):
            if file.images is not None and all(Path(path).is_file() for path in file.images.files(sample.images)):
                file.image_sizes(sample)
        for sample in _rows(OneImageEach(file) if explode else file):
            yield Sample(f"{file.name}/{sample.id}", sample.images, sample.messages, sample.meta)


def _images(root: str, image_root: str | None, grey_bits: int | None) -> ImageRoot:
    return ImageRoot(root if image_root is None else image_root, grey_bits)


def _choice(tasks: Sequence[str] | None, image_folders: Mapping[str, str] | None) -> Choice:
    folders: dict[str, str] = dict(image_folders or {})
    try:
        known = tuple(sorted({task_type(name, "tasks") for name in _several(tasks, "tasks") or ()}))
    except DataError as error:
        raise ConfigError(str(error)) from None
    return Choice(known, folders)


def _several(value: Any, key: str) -> list[str] | None:
    """Return a list of names from a config; one name is a list of one.

    Raises:
        ConfigError: for an empty list, or anything but texts.
    """
    if value is None:
        return None
    names = [value] if isinstance(value, str) else list(value)
    if not names or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{key}: this must be a list of names; leave it out to read all.")
    return names
