"""Whether the validation data of a training config know something of its training data; ``medtune plan`` asks."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from medtune.config import instantiate
from medtune.data.images import ImageRoot
from medtune.data.leakage import Leak, Leakage, Shown, check_allowed, find_leaks, refuse, shown
from medtune.data.passing import PassingSource
from medtune.data.picture_digests import Picture, PictureDigests
from medtune.data.source import RecordSource, SampleSource
from medtune.data.writing import write_whole
from medtune.datasets._mixture import MixtureSource
from medtune.errors import DataError
from medtune.training.checking import cache_folder
from medtune.training.config import TrainConfig

READ_AT_ONCE = 20_000
"""Images that ``medtune plan`` decodes without being asked to; what was decoded once is remembered."""


def compare_splits(config: TrainConfig, listed: Path | None = None, most: int = READ_AT_ONCE) -> str:
    """Compare the training and the validation data of a config.

    Args:
        config: ``dataset``, ``dataset_val``, ``allow_leakage`` and ``preflight_cache`` are read.
        listed: File for the list of overlaps; None writes none.
        most: Largest number of images that are decoded; if more are needed, they are compared by name.

    Returns:
        What was found, in a line for each kind.

    Raises:
        ConfigError: For an unknown name in ``allow_leakage``.
        DataError: For overlaps that are not allowed.
    """
    check_allowed(config.allow_leakage)
    if not config.dataset_val:
        return "there is no validation set to compare with"
    sources = {"train": instantiate(config.dataset), "val": instantiate(config.dataset_val)}
    rows, names = _rows(sources)
    folder = None if config.preflight_cache is None else cache_folder(config.preflight_cache)
    digests = {root: PictureDigests(ImageRoot(root), folder) for root in names}
    unread = sum(digests[root].unread(of) for root, of in names.items())
    pictures: dict[str, Picture] = {}
    if listed is not None or unread <= most:
        for root, of in names.items():
            pictures |= {f"{root}/{name}": one for name, one in digests[root].of(of).items()}
    found = find_leaks(rows, pictures)
    same = _same_file(sources["train"], sources["val"])
    found = Leakage((*same, *found.leaks), found.images, found.compared)
    if listed is not None:
        write_whole(listed, found.to_csv())
    where = f"They are listed in {listed}" if listed else "Run medtune plan with --leakage FILE to list them"
    refuse(found, config.allow_leakage, "dataset and dataset_val", where)
    return "\n".join([_how(found, unread, bool(pictures)), *found.sentences()])


def refuse_same_file(train: SampleSource, val: SampleSource | None, allowed: Sequence[str]) -> None:
    """Refuse to train and to validate with the same samples; ``medtune plan`` also compares images and patients.

    Args:
        train: Training data.
        val: Validation data, if there are any.
        allowed: ``allow_leakage`` of the config.

    Raises:
        ConfigError: For an unknown name in ``allowed``.
        DataError: If both sources have the same content and ``same_file`` is not allowed.
    """
    check_allowed(allowed)
    found = Leakage(tuple(_same_file(train, val) if val else ()), 0, "names")
    refuse(found, allowed, "dataset and dataset_val", "medtune plan compares images and patients as well")


def _how(found: Leakage, unread: int, read: bool) -> str:
    how = f"by the pixels of {found.images:,} images"
    if not read:
        how = f"by the names of {found.images:,} images"
        if unread:
            how += f"; --leakage FILE compares their pixels, which reads {unread:,} images once"
    return f"compared {how}; {'allowed, found:' if found.leaks else 'nothing in common'}"


def _rows(sources: dict[str, SampleSource]) -> tuple[list[Shown], dict[str, list[str]]]:
    """Return the samples with image names that no two roots have in common, and the images of each root."""
    rows: list[Shown] = []
    names: dict[str, list[str]] = {}
    for split, source in sources.items():
        for part in _parts(source):
            root = _root(part)
            for index in range(len(part)):
                try:
                    row = shown(split, part[index])
                except DataError:
                    continue  # the data check reports this row
                where = part.fingerprint() if root is None else str(root)
                if root is not None:
                    names.setdefault(str(root), []).extend(row.images)
                rows.append(row._replace(images=tuple(f"{where}/{name}" for name in row.images)))
    return rows, names


def _parts(source: Any) -> Iterator[Any]:
    """Yield the sources that a source consists of."""
    if isinstance(source, MixtureSource):
        for part in source.parts():
            yield from _parts(part)
    else:
        yield source


def _root(source: Any) -> Path | None:
    """Return the image root of a source of records; crops do not matter, because whole images are compared."""
    while isinstance(source, PassingSource):
        source = source.source
    return source.images.path.resolve() if isinstance(source, RecordSource) and source.images is not None else None


def _same_file(train: SampleSource, val: SampleSource) -> list[Leak]:
    if train.fingerprint() != val.fingerprint():
        return []
    return [Leak("same_file", "train", "", "", "val", "", "")]
