"""The cells of scenes: WBCAtt's photographs, or drawn ones."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from medtune.data.images import ImageRoot
from medtune.data.randomness import sample_rng
from medtune.datasets.cells.attributes import sample_natural
from medtune.datasets.cells.render import render_cell
from medtune.datasets.scenes.draw import TYPES
from medtune.datasets.wbcatt import read_cells
from medtune.errors import DataError

_DRAWN_OF_A_TYPE = 100_000
_DRAWN_SIDE = 64


class Cells(Protocol):
    """Pictures of cells by type.

    Attributes:
        names: type -> the names of its pictures.
        center_crop: share of a picture's sides that its cell fills.
    """

    names: Mapping[str, Sequence[str]]
    center_crop: float

    def load(self, name: str) -> Image.Image:
        """Return a picture."""
        ...


class Photographs:
    """The photographs of one split of WBCAtt.

    Args:
        table: its annotations, ``pbc_attr_v1_<split>.csv``.
        root: where the images are.
        center_crop: share of an image's sides that its cell fills.
        seen: digests of the photographs of earlier splits, which are left out; gets those of this split.

    Raises:
        DataError: if the table or a photograph cannot be read, or a type has no photograph.
    """

    def __init__(self, table: Path, root: ImageRoot, center_crop: float, seen: set[str]) -> None:
        self.center_crop, self._root, self._table = center_crop, root, table
        found: dict[str, list[str]] = {kind: [] for kind in TYPES}
        own: set[str] = set()
        for cell in read_cells(table):
            kind = cell.values["label"].lower()
            if kind not in found:
                raise DataError(f"{table}: {cell.image} is of none of the types {', '.join(TYPES)}; correct the label.")
            digest = hashlib.sha256(self.load(cell.image).tobytes()).hexdigest()
            if digest not in seen:
                own.add(digest)
                found[kind].append(cell.image)
        seen |= own
        empty = [kind for kind, names in found.items() if not names]
        if empty:
            raise DataError(
                f"{table} has no photograph of a {empty[0]} that earlier splits lack; give the whole table."
            )
        self.names: Mapping[str, Sequence[str]] = {kind: tuple(names) for kind, names in found.items()}

    def load(self, name: str) -> Image.Image:
        """Decode a photograph."""
        return self._root.load(name, str(self._table))


class DrawnCells:
    """Cells as :mod:`medtune.datasets.cells` draws them; cell i of a type is a function of the seed, the type and i.

    Args:
        seed: of everything random.
    """

    center_crop = 1.0

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.names: Mapping[str, Sequence[str]] = {kind: _Numbered(kind) for kind in TYPES}

    def load(self, name: str) -> Image.Image:
        """Draw a cell."""
        kind, _, number = name.partition("/")
        rng = sample_rng(self._seed, 0, int(number), f"{kind}/attributes")
        cell = sample_natural(rng)
        while cell["label"].lower() != kind:
            cell = sample_natural(rng)
        return render_cell(cell, sample_rng(self._seed, 0, int(number), f"{kind}/image"), _DRAWN_SIDE)


class _Numbered(Sequence[str]):
    """The names of the drawn cells of a type, made when they are asked for."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __len__(self) -> int:
        return _DRAWN_OF_A_TYPE

    def __getitem__(self, index: Any) -> Any:
        return f"{self.kind}/{range(_DRAWN_OF_A_TYPE)[index]}"
