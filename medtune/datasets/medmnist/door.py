"""The converter of MedMNIST's files to instructions; it also packs the images into a tar file."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from medtune.config import nearest
from medtune.data.archives import png_bytes, tar_blocks
from medtune.data.sample import Sample
from medtune.datasets.classification import (
    Balance,
    Choice,
    ClassSet,
    ClassWeights,
    Row,
    Template,
    commonest,
    row_id,
)
from medtune.datasets.medmnist.facts import FACTS, GRADES, RETINOPATHY, SPLITS, Facts
from medtune.datasets.medmnist.npz import MedMnistFile
from medtune.datasets.prepared import Prepared, Stream
from medtune.errors import ConfigError, DataError

IMAGES = "images.tar"
_ABOUT_3D = (
    "is of MedMNIST 3D, whose images are volumes; this converter reads the 12 sets of MedMNIST 2D. To use volumes, "
    "write them as NIfTI and convert slices of them with prepare/volumes."
)
GradeNames = Literal["words", "numbers"]


class DrawnImage(NamedTuple):
    """One image that is written: its id and path, its right classes, and its weight in the training loss."""

    id: str
    image: str
    indices: tuple[int, ...]
    weight: float


@dataclass(frozen=True)
class Chosen:
    """One set's file, and the rows of each split that are written."""

    file: MedMnistFile
    rows: dict[str, list[Row]]
    weights: dict[str, list[float]]

    @property
    def name(self) -> str:
        """Name of the set."""
        return self.words.name

    @property
    def words(self) -> ClassSet:
        """Classes of the set, and its instruction."""
        return self.file.facts.words

    def drawn(self, split: str) -> Iterator[DrawnImage]:
        """Yield the images of a split in the order of the file; copies of one have the same path."""
        for (row, copy), weight in zip(self.rows[split], self.weights[split], strict=True):
            id = f"{self.name}/{split}/{row}"
            yield DrawnImage(row_id(id, copy), f"{id}.png", self.file.indices(split, row), weight)

    def samples(self, split: str, template: Template) -> Iterator[Sample]:
        """Yield the instructions and answers of a split."""
        for image in self.drawn(split):
            sample = self.words.sample(image.id, image.image, image.indices, template)
            yield replace(sample, weight=image.weight)

    def images(self, split: str) -> Iterator[tuple[str, bytes]]:
        """Yield the path and the PNG of each image of a split, each once."""
        for row, pixels in self.file.images(split, (row for row, _ in self.rows[split])):
            yield f"{self.name}/{split}/{row}.png", png_bytes(pixels)

    def labels(self, split: str) -> list[tuple[int, ...]]:
        """Return the right classes of every row of a split, whether it is written or not."""
        return [self.file.indices(split, row) for row in range(self.file.sizes[split])]


def prepare_medmnist(
    files: str | list[str],
    sets: list[str] | None = None,
    template: Template = "full",
    grades: GradeNames = "words",
    balance_train: Balance | None = None,
    limit_train: int | None = None,
    limit_questions: int | None = None,
    seed: int = 0,
    class_weights: ClassWeights = None,
) -> Prepared:
    """Convert sets of MedMNIST 2D to one file of instructions for each split (VITask, section 3).

    Splits: the official ``train``, ``val`` and ``test``, each with the images of all sets, set after set. Their images
    are written next to them as PNG in ``images.tar``, which is their image root.

    Args:
        files: MedMNIST's ``.npz`` files or a folder of them. The set is read from the beginning of a file's name:
            ``bloodmnist.npz``, ``bloodmnist_224.npz``.
        sets: names of the sets to take (``blood`` or ``bloodmnist``); null takes all that are found.
        template: ``full`` lists the classes in the instruction, ``without_classes`` leaves them out (section 5.4).
        grades: RetinaMNIST's classes in ``words``, or as the ``numbers`` 0 to 4, which are the official names.
        balance_train: ``undersample`` or ``oversample``, see :func:`medtune.datasets.classification.draw_rows`; not for
            a multi-label set.
        limit_train: keep this many training images of each set, drawn at random after balancing.
        limit_questions: keep this many images of each set in val and in test, drawn at random.
        seed: seed of all draws.
        class_weights: see :class:`medtune.datasets.classification.Choice`; ``balanced`` is computed set by set, and a
            class of a mapping must occur in one of the sets.

    Raises:
        ConfigError: for an unknown set, class or option, or a limit below 1.
        DataError: for a file that cannot be used.
    """
    choice = Choice(template, balance_train, limit_train, limit_questions, seed, class_weights)
    chosen = choose_sets(find_files(files, sets), grades, choice)
    answers = {part.name: [part.words.text(row) for row in part.labels("train")] for part in chosen}
    return Prepared(
        name="medmnist",
        splits={split: _stream(chosen, split, template) for split in SPLITS},
        inputs={part.name: part.file.path for part in chosen},
        options={"sets": [part.name for part in chosen], "grades": grades, **asdict(choice)},
        tables={"training_majority": {name: commonest(texts) for name, texts in answers.items()}},
        summary={
            "sets": image_counts(chosen),
            "training_values": {name: dict(Counter(texts).most_common(20)) for name, texts in answers.items()},
        },
        files=packed_images(chosen),
        notes=size_notes(chosen),
    )


def choose_sets(files: Mapping[str, Path], grades: GradeNames, choice: Choice) -> list[Chosen]:
    """Read the files of sets, and choose the rows that are written.

    Args:
        files: name of a set to its file, as of :func:`find_files`.
        grades: RetinaMNIST's classes in ``words``, or as ``numbers``.
        choice: options of the draw.

    Raises:
        ConfigError: for unknown ``grades``, a weight of a class that none of the sets has, or options that do not fit.
        DataError: for a file that cannot be used.
    """
    read = [MedMnistFile(path, _worded(FACTS[name], grades)) for name, path in files.items()]
    _check_weights(choice.class_weights, read)
    return [_choose(file, choice) for file in read]


def packed_images(chosen: Sequence[Chosen]) -> dict[str, Callable[[], Iterator[bytes]]]:
    """Return the archive of all images that are written, for :attr:`medtune.datasets.prepared.Prepared.files`."""

    def images() -> Iterator[bytes]:
        return tar_blocks(member for part in chosen for split in SPLITS for member in part.images(split))

    return {IMAGES: images}


def image_counts(chosen: Sequence[Chosen]) -> dict[str, dict[str, int]]:
    """Return the number of rows of each set and split, copies included."""
    return {part.name: {split: len(part.rows[split]) for split in SPLITS} for part in chosen}


def size_notes(chosen: Sequence[Chosen]) -> list[str]:
    """Return a sentence for each split whose size is not the official one."""
    return [note for part in chosen for note in _notes(part.file)]


def find_files(files: str | Sequence[str], sets: Sequence[str] | None = None) -> dict[str, Path]:
    """Find the file of each set, in the order of the paper's Table 1.

    Args:
        files: files, or a folder, in which ``.npz`` files that are not a set of MedMNIST 2D are ignored.
        sets: names of the sets to take; null takes all.

    Raises:
        ConfigError: for an unknown set, or one without a file.
        DataError: for a folder without a set, a file whose name does not begin with the name of a set, or two files of
            one set.
    """
    wanted = {_known(name) for name in sets} if sets is not None else None
    given = [files] if isinstance(files, str) else list(files)
    found: dict[str, Path] = {}
    for path in (Path(name).expanduser() for name in given):
        inside = sorted(path.glob("*.npz")) if path.is_dir() else [path]
        for file in inside:
            name = _set_of(file)
            if name is None and not path.is_dir():
                if _is_3d(file.stem):
                    raise DataError(f"{file} {_ABOUT_3D}")
                raise DataError(
                    f"{file}: the name begins with no set of MedMNIST 2D; {nearest(file.stem, _file_names())}"
                )
            if name is None or (wanted is not None and name not in wanted):
                continue
            if name in found:
                raise DataError(f"{found[name]} and {file} both hold {FACTS[name].title}; list the one that is meant.")
            found[name] = file
    missing = sorted((wanted or set()) - set(found))
    if missing:
        raise ConfigError(f"sets: there is no file of {missing[0]!r} among {', '.join(map(str, given))}; add it.")
    if not found:
        volumes = sorted(file for name in given for file in Path(name).expanduser().glob("*.npz") if _is_3d(file.stem))
        if volumes:
            raise DataError(f"{volumes[0]} {_ABOUT_3D}")
        raise DataError(f"{', '.join(map(str, given))}: there is no .npz file of a set of MedMNIST 2D here.")
    return {name: found[name] for name in FACTS if name in found}


def _choose(file: MedMnistFile, choice: Choice) -> Chosen:
    labels = {split: [file.indices(split, row) for row in range(file.sizes[split])] for split in SPLITS}
    words = file.facts.words
    rows = {split: choice.rows(words, split, labels[split]) for split in SPLITS}
    if isinstance(choice.class_weights, Mapping):  # each set takes the classes that it has
        own = {name: weight for name, weight in choice.class_weights.items() if name in words.weighable}
        choice = replace(choice, class_weights=own)
    weights = {split: choice.weights(words, split, [labels[split][row] for row, _ in rows[split]]) for split in SPLITS}
    return Chosen(file, rows, weights)


def _check_weights(given: ClassWeights, files: Sequence[MedMnistFile]) -> None:
    known = list(dict.fromkeys(name for file in files for name in file.facts.words.weighable))
    for name in given if isinstance(given, Mapping) else ():
        if name not in known:
            raise ConfigError(f"class_weights: none of the sets has a class {name!r}; {nearest(name, known)}")


def _stream(chosen: Sequence[Chosen], split: str, template: Template) -> Stream:
    return Stream(lambda: (sample for part in chosen for sample in part.samples(split, template)))


def _worded(facts: Facts, grades: str) -> Facts:
    if grades not in ("words", "numbers"):
        raise ConfigError(f"grades: {grades!r} is unknown; use 'words' or 'numbers'.")
    if facts.words.classes != RETINOPATHY or grades == "words":
        return facts
    return replace(facts, words=replace(facts.words, classes=GRADES))


def _notes(file: MedMnistFile) -> Iterator[str]:
    facts = file.facts
    for split, official in zip(SPLITS, facts.sizes, strict=True):
        if file.sizes[split] != official:
            yield (
                f"{file.path.name}: {split} has {file.sizes[split]:,} images, the official {facts.title} {official:,}; "
                "scores do not compare with published ones"
            )


def _known(name: str) -> str:
    short = name.lower().removesuffix("mnist")
    if _is_3d(name):
        raise ConfigError(f"sets: {name} {_ABOUT_3D}")
    if short not in FACTS:
        raise ConfigError(f"sets: there is no set {name!r} in MedMNIST 2D; {nearest(short, list(FACTS))}")
    return short


def _set_of(file: Path) -> str | None:
    stem = file.stem.lower()
    return next((name for name in FACTS if stem.startswith(f"{name}mnist")), None)


def _is_3d(name: str) -> bool:
    """Return whether a name is that of a set of MedMNIST 3D: ``organmnist3d``, ``organ3d``, ``nodulemnist3d_64``."""
    return re.match(r"[a-z]+3d(?![a-z0-9])", name.lower()) is not None


def _file_names() -> list[str]:
    return [f"{name}mnist" for name in FACTS]
