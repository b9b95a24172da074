"""A contact sheet of rendered cells, for the documentation and for visual checks."""

import random
from pathlib import Path

from PIL import Image

from medtune.datasets.cells.attributes import ATTRIBUTES, Attributes, sample_attributes
from medtune.datasets.cells.render import render_cell

_TRIES = 1000


def _cell_of_type(label: str, rng: random.Random, natural: float) -> Attributes:
    for _ in range(_TRIES):
        cell = sample_attributes(rng, natural)
        if cell["label"] == label:
            return cell
    raise AssertionError(f"no {label} in {_TRIES} draws")


def contact_sheet(columns: int = 12, seed: int = 0, natural: float = 1.0, image_size: int = 64) -> Image.Image:
    """Draw `columns` cells of each cell type, one type per row.

    Args:
        columns: number of cells per row.
        seed: seed of attributes and images.
        natural: share of cells drawn by WBCAtt's frequencies, see `sample_attributes`.
        image_size: side of a cell's image in pixels.

    Returns:
        An RGB image with a gap of 4 pixels between cells.
    """
    rng = random.Random(seed)
    labels = ATTRIBUTES["label"]
    step = image_size + 4
    sheet = Image.new("RGB", (columns * step - 4, len(labels) * step - 4), "white")
    for row, label in enumerate(labels):
        for column in range(columns):
            cell = render_cell(_cell_of_type(label, rng, natural), rng, image_size)
            sheet.paste(cell, (column * step, row * step))
    return sheet


def write_contact_sheet(out: Path, columns: int = 12, seed: int = 0, natural: float = 1.0) -> None:
    """Write a contact sheet as an image file, whose format follows from its suffix."""
    out.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(columns, seed, natural, image_size=128).save(out)
