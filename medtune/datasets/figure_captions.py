"""Captions of figures, and the sentences that mention them: JSON, JSON Lines and LLaVA-Med's files."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from medtune.data.source import decode_json
from medtune.errors import DataError

CAPTIONS, MENTIONS = ("caption", "fig_caption"), ("mentions", "in_text_mention")
"""Our keys, and those of LLaVA-Med's files."""
_NAMES = ("id", "pair_id", "image", "imgs")


@dataclass(frozen=True)
class Figure:
    """What an article says of an image.

    Attributes:
        caption: The figure's caption.
        mentions: Sentences of the article that mention the figure.
    """

    caption: str
    mentions: tuple[str, ...] = ()


def read_figures(path: str | Path) -> dict[str, Figure]:
    """Read captions by every name that their image has.

    Args:
        path: A JSON array, or JSON Lines, of ``{"id" or "pair_id" or "image" or "imgs", "caption" or "fig_caption",
            "mentions" or "in_text_mention"}``, with mentions as texts or as LLaVA-Med's ``{"tokens": text}``. An image
            is found by its path, its file name, and its file name without suffix.

    Raises:
        DataError: Naming file and row: no name, no caption, or one name with two captions.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise DataError(f"The file of captions {path} does not exist; correct its path.")
    found: dict[str, Figure] = {}
    places: dict[str, str] = {}
    for where, row in _rows(path):
        figure = figure_of(row, where)
        names = names_of(row)
        if not names:
            raise DataError(f"{where}: a caption needs one of {', '.join(_NAMES)}, to find its image by.")
        for name in names:
            if found.setdefault(name, figure) != figure:
                raise DataError(f"{where}: {name!r} has another caption in {places[name]}; keep one of the two.")
            places.setdefault(name, where)
    if not found:
        raise DataError(f"{path} holds no caption.")
    return found


def names_of(row: Mapping[str, Any]) -> list[str]:
    """Return every name by which the image of a row is found."""
    given = [str(row[key]) for key in _NAMES if isinstance(row.get(key), str | int) and str(row[key]).strip()]
    names = [*given, *(part for name in given for part in (PurePosixPath(name).name, PurePosixPath(name).stem))]
    return list(dict.fromkeys(name for name in names if name))


def figure_of(row: Mapping[str, Any], where: str) -> Figure:
    """Return caption and mentions of a row.

    Raises:
        DataError: If there is no caption, or the mentions are no list of texts.
    """
    caption = next((row[key] for key in CAPTIONS if key in row), None)
    if not isinstance(caption, str):
        raise DataError(f"{where}: the caption must be a text under {' or '.join(map(repr, CAPTIONS))}.")
    mentions: Any = next((row[key] for key in MENTIONS if row.get(key) is not None), [])
    if not isinstance(mentions, list):
        raise DataError(f"{where}: mentions must be a list of texts.")
    texts = mention_texts(mentions)
    if texts is None:
        raise DataError(f"{where}: mentions must be a list of texts, or of objects with 'tokens'.")
    return Figure(caption, tuple(texts))


def mention_texts(mentions: Sequence[Any]) -> list[str] | None:
    """Return the sentences of a row's mentions, each a text or an object with ``tokens``; None if one is neither."""
    found = [item.get("tokens") if isinstance(item, Mapping) else item for item in mentions]
    texts = [text for text in found if isinstance(text, str)]
    return texts if len(texts) == len(found) else None


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    with path.open("rb") as file:
        array = file.read(1024).decode("utf-8-sig", "replace").lstrip().startswith("[")
    if array:
        try:
            decoded = json.loads(path.read_bytes().decode("utf-8-sig"))
        except (ValueError, RecursionError):
            raise DataError(f"{path}: this is not valid JSON; give a JSON array or JSON Lines.") from None
        numbered = iter([(f"{path.name}, item {number}", row) for number, row in enumerate(decoded, start=1)])
    else:
        numbered = _lines(path)
    for where, row in numbered:
        if not isinstance(row, Mapping):
            raise DataError(f"{where}: a row must be a JSON object, this one is a {type(row).__name__}.")
        yield where, row


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if raw.strip():
                where = f"{path.name}, line {number}"
                yield where, decode_json(raw, where)
