"""Figures of articles: an image with its caption, the sentences that mention it, and its modalities.

Read from JSON (an array, or an object of rows by id) and JSON Lines, with our keys (``id``, ``image``, ``domain``,
``caption``, ``mentions``) or with those of LLaVA-Med's files (``pair_id``, ``fig_caption``, ``in_text_mention``).
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medtune.data.sample import is_identifier, printable
from medtune.data.writing import file_sha256
from medtune.datasets.figure_captions import CAPTIONS, MENTIONS, mention_texts
from medtune.errors import DataError

MODALITIES = ("chest_xray", "mri", "ct_scan", "histology", "gross")
"""The five modalities of LLaVA-Med's data, in the order of its files."""
IMAGES = ("image", "imgs")
Refuse = Callable[[str, DataError], None]


@dataclass(frozen=True)
class Figure:
    """One image with its texts.

    Attributes:
        id: Unique in its file.
        image: Path relative to the image root.
        domains: Those of :data:`MODALITIES` that it shows; empty if unknown.
        caption: Its caption.
        mentions: Sentences of the article that mention it.
    """

    id: str
    image: str
    domains: tuple[str, ...]
    caption: str
    mentions: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """Caption and mentions."""
        return "\n".join((self.caption, *self.mentions))

    def to_dict(self) -> dict[str, Any]:
        """Return the row as it is written; ``domain`` as LLaVA-Med writes it."""
        return {
            "id": self.id,
            "image": self.image,
            "domain": {name: name in self.domains for name in MODALITIES},
            "caption": self.caption,
            "mentions": list(self.mentions),
        }


@dataclass
class Figures:
    """The figures of a file.

    Attributes:
        path: The file.
        rows: In its order, each id once.
        repeated: Rows that say the same of a figure again, such as a second question about it.
        sha256: Of the file.
    """

    path: Path
    rows: list[Figure] = field(default_factory=list)
    repeated: int = 0
    sha256: str = ""


def read_figures(path: str | Path, refuse: Refuse | None = None) -> Figures:
    """Read figures.

    Args:
        path: A JSON or JSON Lines file.
        refuse: Called with the place and the error of a row that cannot be used, which is then left out; None raises.

    Raises:
        DataError: The file cannot be read, holds no figure, or a row has no id, no image or no caption, an unknown
            modality, or an id that another row uses for something else.
    """
    found = Figures(Path(path).expanduser())
    known: dict[str, Figure] = {}
    for where, row in read_rows(found.path):
        try:
            figure = figure_of(row, where)
            before = known.setdefault(figure.id, figure)
            if before is not figure and before != figure:
                raise DataError(
                    f"{where}: the id {figure.id!r} belongs to another figure too; give each figure an id of its own."
                )
        except DataError as error:
            if refuse is None:
                raise
            refuse(where, error)
            continue
        found.repeated += before is not figure
    found.rows = list(known.values())
    if not found.rows:
        raise DataError(f"{found.path} holds no figure that can be used; see docs/biomed_vital.md for its layout.")
    found.sha256 = file_sha256(found.path)
    return found


def read_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield place and row of a JSON array, of an object of rows by id, or of JSON Lines.

    Raises:
        DataError: The file is absent, or not JSON.
    """
    try:
        raw = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}; check the path.") from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is not in UTF-8; save it as such.") from None
    try:
        whole = json.loads(raw)
    except (ValueError, RecursionError):
        yield from _lines(raw, path)
        return
    if isinstance(whole, Mapping) and whole and all(isinstance(row, Mapping) for row in whole.values()):
        whole = whole if _is_row(whole) else [{"id": name, **row} for name, row in whole.items()]
    for number, row in enumerate(whole if isinstance(whole, list) else [whole], start=1):
        yield f"{path}, item {number}", row


def _is_row(value: Mapping[str, Any]) -> bool:
    return any(name in value for name in (*CAPTIONS, *IMAGES))


def _lines(raw: str, path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(raw.split("\n"), start=1):  # not splitlines: texts may hold other separators
        if not line.strip():
            continue
        try:
            yield f"{path}, line {number}", json.loads(line)
        except (ValueError, RecursionError):
            raise DataError(f"{path}, line {number}: this is not JSON; mend or remove the line.") from None


def figure_of(row: Any, where: str) -> Figure:
    """Check a decoded row.

    Args:
        row: The row in our layout or in LLaVA-Med's.
        where: File and row, for errors.

    Raises:
        DataError: Naming ``where`` and the wrong field.
    """
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: a row must be a JSON object, this one is a {type(row).__name__}.")
    id = next((row[name] for name in ("pair_id", "id") if is_identifier(row.get(name))), None)
    if id is None:
        raise DataError(f"{where}: the row has no 'id' (or 'pair_id'); give each figure an id of its own.")
    named = f"{where} (id {printable(str(id))!r})"
    image = next((row[name] for name in IMAGES if name in row), f"{id}.jpg" if "pair_id" in row else None)
    if not isinstance(image, str) or not image.strip():
        raise DataError(f"{named}: 'image' must be the path of one image.")
    caption = next((row[name] for name in CAPTIONS if name in row), None)
    if not isinstance(caption, str) or not caption.strip():
        raise DataError(f"{named}: the row has no 'caption' (or 'fig_caption'), which the prompt needs; add it.")
    return Figure(
        printable(str(id)), image, domains_of(row.get("domain"), named), plain(caption), _mentions(row, named)
    )


def domains_of(value: Any, where: str) -> tuple[str, ...]:
    """Return the modalities that a row names: ``{"mri": true, ...}``, a list, or one name; None is none.

    Raises:
        DataError: A modality is unknown, or the value is none of these.
    """
    if isinstance(value, Mapping):
        if not all(isinstance(held, bool) for held in value.values()):
            raise DataError(f"{where}: 'domain' must say true or false of each modality.")
        names, true = list(value), [name for name, held in value.items() if held]
    else:
        names = true = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(names, list) or not all(name in MODALITIES for name in names if isinstance(name, str)):
        raise DataError(f"{where}: 'domain' names an unknown modality; those known are {', '.join(MODALITIES)}.")
    if not all(isinstance(name, str) for name in names):
        raise DataError(f"{where}: 'domain' must hold names of modalities.")
    return tuple(name for name in MODALITIES if name in true)


def _mentions(row: Mapping[str, Any], where: str) -> tuple[str, ...]:
    value = next((row[name] for name in MENTIONS if name in row), None)
    items = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(items, list):
        raise DataError(f"{where}: the in-text mentions must be a list of sentences.")
    texts = mention_texts(items)
    if texts is None:
        raise DataError(f"{where}: a mention must be a sentence, or an object with the sentence as 'tokens'.")
    return tuple(plain(text) for text in texts if text.strip())


def plain(text: str) -> str:
    """Return a text that UTF-8 can hold, without space around it; JSON may contain lone surrogates."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").strip()
