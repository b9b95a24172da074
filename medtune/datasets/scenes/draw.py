"""Draws a scene: cells of known type and size on a canvas of plasma's colour, none of which hides another."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

TYPES = ("basophil", "eosinophil", "lymphocyte", "monocyte", "neutrophil")
MOST_CELLS = 4
SMALLEST, LARGEST = 18, 30
"""Diameters of a cell in pixels on a canvas of 64 pixels."""
_CANVAS = 64
_GAP = 1
_LEAD = 2  # pixels by which the largest cell exceeds the others, so that "the largest" has one answer
_TRIES = 400
_PLASMA = (236, 214, 208)


@dataclass(frozen=True)
class Cell:
    """One cell of a scene.

    Attributes:
        kind: its type, one of :data:`TYPES`.
        box: x1, y1, x2, y2 in pixels, the first two inside, the last two outside of the cell.
        picture: the name of its picture.
    """

    kind: str
    box: tuple[int, int, int, int]
    picture: str

    @property
    def diameter(self) -> int:
        """Its width and height in pixels."""
        return self.box[2] - self.box[0]


@dataclass(frozen=True)
class Scene:
    """A canvas and its cells, from top to bottom and from left to right.

    Attributes:
        side: width and height of the canvas in pixels.
        cells: at least one cell; one of them is the largest.
    """

    side: int
    cells: tuple[Cell, ...]

    @property
    def largest(self) -> Cell:
        """The cell of the greatest diameter."""
        return max(self.cells, key=lambda cell: cell.diameter)

    @property
    def kinds(self) -> list[str]:
        """The types that occur, in alphabetical order."""
        return sorted({cell.kind for cell in self.cells})


def draw_scene(rng: random.Random, pictures: Mapping[str, Sequence[str]], side: int) -> Scene:
    """Draw the number, types, sizes and places of a scene's cells.

    Args:
        rng: source of all randomness.
        pictures: type -> the names of its pictures; every type has one.
        side: width and height of the canvas in pixels.
    """
    count = rng.randint(1, MOST_CELLS)
    while True:
        sizes = [round(rng.randint(SMALLEST, LARGEST) * side / _CANVAS) for _ in range(count)]
        first, *others = sorted(sizes, reverse=True)
        if others and first - others[0] < _LEAD:
            continue
        boxes = _placed(rng, sizes, side)
        if boxes is not None:
            break
    cells = []
    for box in sorted(boxes, key=lambda box: (box[1], box[0])):
        kind = rng.choice(TYPES)
        cells.append(Cell(kind, box, rng.choice(pictures[kind])))
    return Scene(side, tuple(cells))


def _placed(rng: random.Random, sizes: Sequence[int], side: int) -> list[tuple[int, int, int, int]] | None:
    """Places of the cells, the large ones first; None if no room was found."""
    boxes: list[tuple[int, int, int, int]] = []
    tries = 0
    for size in sorted(sizes, reverse=True):
        while True:
            tries += 1
            if tries > _TRIES:
                return None
            x, y = rng.randint(0, side - size), rng.randint(0, side - size)
            box = (x, y, x + size, y + size)
            if not any(_touch(box, other) for other in boxes):
                boxes.append(box)
                break
    return boxes


def _touch(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    apart = a[2] + _GAP <= b[0] or b[2] + _GAP <= a[0] or a[3] + _GAP <= b[1] or b[3] + _GAP <= a[1]
    return not apart


def paint(scene: Scene, pictures: Sequence[Image.Image], center_crop: float, rng: random.Random) -> np.ndarray:
    """Paint a scene.

    Args:
        scene: what to paint.
        pictures: one picture of each cell, in the scene's order.
        center_crop: share of a picture's sides that its cell fills.
        rng: source of the canvas's grain.

    Returns:
        Pixels [side, side, 3] of 8 bits.
    """
    grain = np.random.default_rng(rng.getrandbits(64))
    canvas = np.array(_PLASMA, dtype=np.float32) + grain.normal(0, 3, (scene.side, scene.side, 3)).astype(np.float32)
    for cell, picture in zip(scene.cells, pictures, strict=True):
        x1, y1, x2, y2 = cell.box
        width, height = picture.size
        cut = min(width, height) * center_crop
        middle = ((width - cut) / 2, (height - cut) / 2, (width + cut) / 2, (height + cut) / 2)
        sight = picture.convert("RGB").resize((x2 - x1, y2 - y1), Image.Resampling.BICUBIC, box=middle)
        mask = _disc(cell.diameter)
        canvas[y1:y2, x1:x2] = (1 - mask) * canvas[y1:y2, x1:x2] + mask * np.asarray(sight, dtype=np.float32)
    return canvas.round().clip(0, 255).astype(np.uint8)


@cache
def _disc(diameter: int) -> np.ndarray:
    """A round mask [diameter, diameter, 1] whose edge fades over one pixel."""
    place = np.arange(diameter) + 0.5 - diameter / 2
    radius = np.hypot(place[:, None], place[None, :])
    return np.clip(diameter / 2 - radius + 0.5, 0, 1)[..., None].astype(np.float32)
