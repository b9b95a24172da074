"""Labelled images that lie in folders: ``<class>/<image>`` or ``<split>/<class>/<image>``, on disk or in a tar file."""

import re
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from medtune.data.image_names import hidden_part
from medtune.data.images import ImageRoot
from medtune.datasets.image_column import SUFFIXES
from medtune.datasets.labelled_images import LabelledImage
from medtune.errors import DataError

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "validate": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
"""Names of splits, in lower case, and what each means."""
_SHOWN = 5


@dataclass(frozen=True)
class Found:
    """The files of a folder.

    Attributes:
        rows: the images of the class folders.
        others: number of files in class folders that are no images.
        hidden: name of a hidden or resource file or folder -> number of files that it kept out.
    """

    rows: list[LabelledImage]
    others: int
    hidden: Counter[str]

    def notes(self) -> list[str]:
        """Return the sentence about what was passed over."""
        if not self.hidden:
            return []
        names = [name for name, _ in sorted(self.hidden.items(), key=lambda item: (-item[1], item[0]))]
        shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
        return [f"{self.hidden.total():,} hidden or resource files were passed over ({shown})"]


def find_images(root: Path, classes: Collection[str] | None = None) -> Found:
    """List the images of class folders.

    If all folders of the root are named like splits (``Train``, ``valid``, ``TEST``), they are splits. Hidden and
    resource files are passed over.

    Args:
        root: the folder, or the tar file.
        classes: names of class folders that the user gave; they may be named like splits.

    Raises:
        DataError: if the root is absent or holds no class folder; if a class folder holds no image; if folders named
            like splits lie beside others, or in a class folder.
    """
    files: list[tuple[str, ...]] = []
    hidden: Counter[str] = Counter()
    for name in ImageRoot(root).names():
        kept_out_by = hidden_part(name)
        if kept_out_by is None:
            files.append(tuple(name.split("/")))
        else:
            hidden[kept_out_by] += 1
    given = set(classes or ())
    homes = _folders(root, (), files)
    parted = _are_splits(root, homes, given)
    rows, others = [], 0
    for split, home in [(SPLIT_NAMES[_plain(name)], (name,)) for name in homes] if parted else [("", ())]:
        inside: dict[str, list[tuple[str, ...]]] = {name: [] for name in _folders(root, home, files)}
        for file in files:
            if len(file) > len(home) + 1 and file[: len(home)] == home:
                inside[file[len(home)]].append(file)
        for name, own in inside.items():
            images = [file for file in own if PurePosixPath(file[-1]).suffix.lower() in SUFFIXES]
            others += len(own) - len(images)
            path = root.joinpath(*home, name)
            _check_class(path, [file[len(home) + 1 :] for file in images], given)
            rows += [LabelledImage("/".join(image), (name,), str(path), split) for image in images]
    if not rows:
        raise DataError(f"{root} holds no folder with images; it must hold one folder for each class.")
    return Found(rows, others, hidden)


def _folders(root: Path, home: tuple[str, ...], files: Iterable[tuple[str, ...]]) -> list[str]:
    """Return the folders directly below a folder, empty ones too, sorted."""
    depth = len(home)
    names = {file[depth] for file in files if len(file) > depth + 1 and file[:depth] == home}
    if root.is_dir():
        below = root.joinpath(*home).iterdir()
        names |= {path.name for path in below if path.is_dir() and hidden_part(path.name) is None}
    return sorted(names)


def _are_splits(root: Path, folders: list[str], classes: set[str]) -> bool:
    """Return whether folders are splits, and refuse what may be meant as some splits."""
    splits = [name for name in folders if _plain(name) in SPLIT_NAMES and name not in classes]
    if splits and len(splits) == len(folders):
        return True
    alike = [name for name in folders if _first_word(name) in SPLIT_NAMES and name not in classes]
    if alike:
        others = [name for name in folders if name not in alike]
        beside = f" beside others ({', '.join(others[:_SHOWN])})" if others else ""
        raise DataError(
            f"{root} holds folders named like splits ({', '.join(alike[:_SHOWN])}){beside}; if they are splits, name "
            "them train, val and test and move the others away; if they are classes, list them in 'classes'."
        )
    return False


def _check_class(path: Path, images: list[tuple[str, ...]], classes: set[str]) -> None:
    """Refuse a class folder without images, and one that holds splits.

    Args:
        path: the folder.
        images: parts of the path of each image below it.
        classes: names that the user gave.
    """
    if not images:
        if path.is_symlink():
            raise DataError(f"The class folder {path} is a link, which is not followed; put the folder itself there.")
        raise DataError(f"The class folder {path} holds no image; add some, or remove the folder.")
    below = {image[0] for image in images if len(image) > 1}
    splits = sorted(folder for folder in below if _plain(folder) in SPLIT_NAMES and folder not in classes)
    if splits:
        raise DataError(
            f"The class folder {path} holds folders named like splits ({', '.join(splits)}); the order must be "
            "<split>/<class>/<image>. Move them, or write a CSV with a column for the split."
        )


def _plain(name: str) -> str:
    return name.strip().lower()


def _first_word(name: str) -> str:
    """Return the first word of ``Train_images`` or ``test-set``, in lower case."""
    return re.split(r"[\W\d_]+", _plain(name))[0]
