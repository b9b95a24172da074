"""The folders of FLARE's 2D sets: ``{split}/{Category}/{dataset}/{dataset}_questions_{train,val,test}.json``."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medtune.errors import ConfigError, DataError

SPLITS = ("train", "validation_public", "validation_hidden", "test")
_FOLDERS = {
    "training": "train",
    "train": "train",
    "validation_public": "validation_public",
    "validation": "validation_public",
    "validation_hidden": "validation_hidden",
    "testing": "test",
    "test": "test",
}
_SUFFIXES = {"train": "train", "val": "validation_public", "test": "test"}
_FILE = re.compile(r"(?P<dataset>.+)_questions_(?P<part>train|val|test)(?P<answers>_withGT)?\.json")


@dataclass(frozen=True)
class QuestionFile:
    """One file of questions.

    Attributes:
        path: the file.
        dataset: name of its data set, such as ``BUSI-det``.
        split: one of :data:`SPLITS`.
        folder: folder of the file below the root, with ``/``; image names are relative to it.
        category: name of the folder above, such as ``Ultrasound``; empty if the root is the data set's own folder.
    """

    path: Path
    dataset: str
    split: str
    folder: str
    category: str


def split_name(text: str) -> str:
    """Return a split's name from that of its folder or from a shorter one (``training``, ``val``, ``testing``).

    Raises:
        ConfigError: for anything else.
    """
    folded = text.strip().lower().replace("-", "_")
    name = _FOLDERS.get(folded) or _SUFFIXES.get(folded)
    if name is None:
        raise ConfigError(f"split: {text!r} is unknown; use one of {', '.join(SPLITS)}.")
    return name


def question_files(root: Path, split: str | None = None, datasets: Sequence[str] | None = None) -> list[QuestionFile]:
    """Return the question files of a folder, in the order of their paths.

    The root is the folder of all splits, of one split, or of one data set. The split is that of the folder on the way
    to the file; without such a folder it is that of the file's own name. Of two files with and without the hidden
    answers (``_withGT``), which hold the same questions, the one with the answers is read.

    Args:
        root: the folder.
        split: a normalised split; None takes all.
        datasets: names of data sets; None takes all.

    Raises:
        ConfigError: for a name in ``datasets`` that no file has.
        DataError: if the root is absent or holds no such file, or if two files are of one data set and split.
    """
    if not root.is_dir():
        raise DataError(f"The folder {root} does not exist; give the folder that holds FLARE's splits.")
    found: dict[tuple[Path, str], tuple[QuestionFile, bool]] = {}
    for path in sorted(root.rglob("*_questions_*.json")):
        match = _FILE.fullmatch(path.name)
        if match is None or not path.is_file():
            continue
        folder = path.parent.relative_to(root)
        category = folder.parts[-2] if len(folder.parts) > 1 else ""
        file = QuestionFile(
            path, match["dataset"], _split_of(root, folder.parts, match["part"]), folder.as_posix(), category
        )
        key = (path.parent, match["dataset"] + match["part"])
        if key not in found or match["answers"]:
            found[key] = (file, bool(match["answers"]))
    files = [file for file, _ in found.values()]
    if not files:
        raise DataError(f"{root} holds no <dataset>_questions_train.json, _val.json or _test.json; correct the root.")
    names = sorted({file.dataset for file in files})
    unknown = [name for name in datasets or () if name not in names]
    if unknown:
        raise ConfigError(f"datasets: {root} holds no set {unknown[0]!r}; it holds {', '.join(names)}.")
    chosen = [file for file in files if split in (None, file.split) and (not datasets or file.dataset in datasets)]
    if not chosen:
        there = ", ".join(sorted({file.split for file in files}))
        raise DataError(f"{root} holds no questions of the split {split} in these data sets; its splits are {there}.")
    _check_unique(chosen)
    return chosen


def _split_of(root: Path, parts: Sequence[str], suffix: str) -> str:
    for name in (*parts, root.resolve().name):
        known = _FOLDERS.get(name.lower().replace("-", "_"))
        if known:
            return known
    return _SUFFIXES[suffix]


def _check_unique(files: Sequence[QuestionFile]) -> None:
    first: dict[tuple[str, str], Path] = {}
    for file in files:
        other = first.setdefault((file.dataset, file.split), file.path)
        if other != file.path:
            raise DataError(
                f"{file.path}: the questions of {file.dataset} ({file.split}) are also in {other}; remove one of them."
            )
