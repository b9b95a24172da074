"""The diverse part of the figures that clinicians are asked about: features, groups, choice, and a plot."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file, save_file

from medtune.curation.features import Features, Rows
from medtune.curation.figures import Figure
from medtune.curation.groups import chosen_uniformly, complexity, grouped
from medtune.data.writing import json_bytes, replaced, write_files
from medtune.errors import ConfigError, DataError

CHUNK = 256
"""Figures whose features are written at once."""


@dataclass(frozen=True)
class Groups:
    """How figures are chosen.

    Attributes:
        count: Number of groups K; the official code has 60.
        size: Number of figures to choose M.
        complex_share: Share of each group, its most complex captions and mentions, that is drawn from.
        seed: Seed of k-means and of the draw.
        batch_size: Figures that are encoded at once.

    Raises:
        ValueError: A number is out of range.
    """

    count: int = 60
    size: int = 600
    complex_share: float = 0.5
    seed: int = 0
    batch_size: int = 32

    def __post_init__(self) -> None:
        if min(self.count, self.size, self.batch_size) < 1 or not 0 < self.complex_share <= 1:
            raise ValueError(
                "groups: count, size and batch_size must be at least 1, complex_share above 0 and at most 1"
            )


def choose_figures(
    folder: Path,
    figures: Sequence[Figure],
    source: str,
    groups: Groups,
    features: Features,
    open_image: Callable[[Figure], Image.Image],
    refuse: Callable[[str, DataError], None],
    say: Callable[[str], None],
) -> list[Figure]:
    """Choose figures; write ``groups.csv``, ``groups.png`` and ``chosen.jsonl``. A killed run keeps its features.

    Args:
        folder: Where they are written.
        figures: All figures.
        source: SHA-256 of their file.
        groups: How they are chosen.
        features: Makes the features.
        open_image: Opens an image.
        refuse: Called with id and error of a figure whose image cannot be used; may raise.
        say: Called with messages for the user.

    Raises:
        ConfigError: There are fewer figures than groups, or than are to be chosen.
        DataError: Features or images cannot be used.
    """
    if groups.count > len(figures) or groups.size > len(figures):  # before hours of encoding
        name = "count" if groups.count > len(figures) else "size"
        raise ConfigError(f"groups.{name} is {getattr(groups, name)}, and there are {len(figures)} figures; lower it")
    kept, table = _features(folder / "features", figures, source, groups.batch_size, features, open_image, refuse)
    found = grouped(table, groups.count, groups.seed)
    scores = [complexity(figure.text) for figure in kept]
    rows = chosen_uniformly(found, scores, groups.size, groups.complex_share, groups.seed)
    chosen = [kept[row] for row in rows]
    from medtune.curation.plot import groups_png

    write_files(
        folder,
        {
            "groups.csv": _csv(kept, found, scores, set(rows)),
            "groups.png": groups_png(table, found, rows),
            "chosen.jsonl": "".join(json.dumps(one.to_dict(), ensure_ascii=False) + "\n" for one in chosen).encode(),
        },
        overwrite=True,
    )
    say(f"{len(chosen)} of {len(kept)} figures chosen from {groups.count} groups; see {folder / 'groups.png'}")
    return chosen


def _features(
    folder: Path,
    figures: Sequence[Figure],
    source: str,
    batch_size: int,
    features: Features,
    open_image: Callable[[Figure], Image.Image],
    refuse: Callable[[str, DataError], None],
) -> tuple[list[Figure], Rows]:
    """Return the figures that have features, and these; each chunk is on the disk as soon as it is made."""
    features.check(len(figures))
    wanted = {"features": features.identity(), "figures": source, "ids": len(figures), "chunk": CHUNK}
    _claim(folder, wanted)
    kept: list[Figure] = []
    tables: list[Rows] = []
    for start in range(0, len(figures), CHUNK):
        path, part = folder / f"part-{start // CHUNK:05d}.safetensors", figures[start : start + CHUNK]
        earlier = path.is_file()
        if not earlier:
            rows, table = _encoded(part, start, batch_size, features, open_image, refuse)
            with replaced(path) as aside:
                save_file({"rows": np.array(rows, dtype=np.int64), "features": table}, aside)
        held = load_file(path)
        used = held["rows"].tolist()
        if earlier:  # the start that refused them may have been killed before it wrote its list
            for row in sorted(set(range(len(part))) - set(used)):
                refuse(part[row].id, DataError(f"figure {part[row].id!r}: an earlier start could not use its image"))
        kept += [part[row] for row in used]
        tables.append(held["features"])
    return kept, np.concatenate([table for table in tables if len(table)] or [np.zeros((0, 1), np.float32)])


def _claim(folder: Path, wanted: dict[str, Any]) -> None:
    path = folder / "features.json"
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")) != json.loads(json_bytes(wanted)):
        raise ConfigError(
            f"{folder} holds features of other figures or of another model; remove it, or choose another output_dir"
        )
    write_files(folder, {path.name: json_bytes(wanted)}, overwrite=True)


def _encoded(
    figures: Sequence[Figure],
    start: int,
    batch_size: int,
    features: Features,
    open_image: Callable[[Figure], Image.Image],
    refuse: Callable[[str, DataError], None],
) -> tuple[list[int], Rows]:
    rows: list[int] = []
    images: list[Image.Image] = []
    found: list[Rows] = []

    def encode(batch: list[int], shown: list[Image.Image]) -> None:
        if batch:
            found.append(features.of([figures[row] for row in batch], shown, [start + row for row in batch]))

    begun = 0
    for row, figure in enumerate(figures):
        if features.looks:
            try:
                images.append(open_image(figure))
            except ConfigError:
                raise
            except DataError as error:
                refuse(figure.id, error)
                continue
        rows.append(row)
        if len(rows) - begun == batch_size:
            encode(rows[begun:], images)
            begun, images = len(rows), []
    encode(rows[begun:], images)
    return rows, np.concatenate(found) if found else np.zeros((0, 1), np.float32)


def _csv(figures: Sequence[Figure], groups: NDArray[np.int64], scores: Sequence[int], chosen: set[int]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("id", "group", "words", "chosen"))
    for row, figure in enumerate(figures):
        writer.writerow((figure.id, int(groups[row]), scores[row], int(row in chosen)))
    return text.getvalue().encode()
