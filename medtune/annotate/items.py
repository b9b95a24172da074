"""What is annotated: questions with two answers each, their captions, and where their images lie."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from medtune.data.images import ImageRoot
from medtune.data.source import decode_json
from medtune.datasets.figure_captions import Figure
from medtune.errors import DataError
from medtune.judges.annotations import label_studio_tasks
from medtune.judges.candidates import Candidate

_NAMED = 3


@dataclass(frozen=True)
class Items:
    """The questions of a file.

    Attributes:
        rows: In the order of the file.
        unusable: How many have nothing to choose from (an empty answer, or two equal ones) and are left out.
    """

    rows: list[Candidate]
    unusable: int


def read_items(path: str | Path, fields: Mapping[str, str] | None = None) -> Items:
    """Read the questions.

    Args:
        path: JSON Lines of :class:`~medtune.judges.candidates.Candidate`, or tasks of Label Studio (a JSON array).
        fields: How a Label Studio project calls its fields, where it differs from the default.

    Raises:
        DataError: Naming file and row: no id, an id that occurs twice, or no question with two answers.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise DataError(f"The file {path} does not exist; give the file of questions with two answers each.")
    rows: dict[str, Candidate] = {}
    places: dict[str, str] = {}
    unusable = 0
    for where, row in _rows(path, fields or {}):
        if row.id in places:
            raise DataError(f"{where} (id {row.id!r}): {places[row.id]} has this id already; give each row its own.")
        places[row.id] = where
        if row.unusable:
            unusable += 1
        else:
            rows[row.id] = row
    if not rows:
        raise DataError(f"{path} holds no question with two different answers.")
    return Items(list(rows.values()), unusable)


def _rows(path: Path, fields: Mapping[str, str]) -> Iterator[tuple[str, Candidate]]:
    with path.open("rb") as file:
        exported = file.read(1024).decode("utf-8-sig", "replace").lstrip().startswith("[")
    if exported:
        yield from label_studio_tasks(path, fields)
        return
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if raw.strip():
                where = f"{path.name}, line {number}"
                yield where, Candidate.from_dict(decode_json(raw, where), where)


def with_captions(rows: Iterable[Candidate], figures: Mapping[str, Figure]) -> tuple[list[Candidate], int]:
    """Add captions and mentions under ``meta``; what a row has itself is kept.

    Args:
        rows: The questions.
        figures: Captions by the id of a row, or by path, file name or stem of an image.

    Returns:
        The rows, and how many have no caption.
    """
    done, without = [], 0
    for row in rows:
        names = [row.id, *(part for image in row.images for part in _image_names(image))]
        figure = next((figures[name] for name in names if name in figures), None)
        if figure is not None and "caption" not in row.meta:
            meta = {**row.meta, "caption": figure.caption, "mentions": list(figure.mentions)}
            row = dataclasses.replace(row, meta=meta)
        without += "caption" not in row.meta
        done.append(row)
    return done, without


def _image_names(image: str) -> tuple[str, str, str]:
    path = PurePosixPath(image)
    return image, path.name, path.stem


def check_images(rows: Iterable[Candidate], root: ImageRoot | None) -> None:
    """Look at every image's header once, before anybody annotates.

    Raises:
        DataError: Naming the first images that are gone, damaged or outside the root, and how many there are.
    """
    wrong: list[str] = []
    count = 0
    for row in rows:
        if root is None:
            if row.images:
                raise DataError(f"id {row.id!r} names an image; give the folder or .tar of the images with --images.")
            continue
        for name in row.images:
            try:
                root.size(name, f"id {row.id!r}")
            except DataError as error:
                count += 1
                if len(wrong) < _NAMED:
                    wrong.append(str(error))
    if wrong:
        more = f" ({count - len(wrong)} more)" if count > len(wrong) else ""
        raise DataError(" ".join(wrong) + more)
