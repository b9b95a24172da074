"""Draw a stained white blood cell from its attributes, in the look of the crops of a blood smear.

Colours, sizes and backgrounds were measured on the peripheral blood cell images of Acevedo et al. (2020), which
WBCAtt annotates; the centre crop of 72/128 of an image corresponds to one rendered image.
"""

import random

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medtune.datasets.cells.attributes import Attributes
from medtune.datasets.cells.shapes import Array, Rng, nucleus_field, outline_radius, pixel_grid, smooth_noise, spots

_CREAM, _LAVENDER = (253.0, 228.0, 203.0), (226.0, 220.0, 238.0)
_LAVENDER_SHARE = 0.05
_RED_CELL = (203.0, 167.0, 165.0)
_CYTOPLASM = {"light blue": (209.0, 181.0, 193.0), "blue": (158.0, 148.0, 196.0), "purple blue": (166.0, 126.0, 182.0)}
_NUCLEUS = {"densely": (80.0, 38.0, 124.0), "loosely": (118.0, 68.0, 149.0)}
_GRANULE = {"pink": (203.0, 132.0, 168.0), "red": (197.0, 90.0, 104.0), "purple": (82.0, 36.0, 120.0)}
# spacing, radius, presence (64ths of the image; probability), cover over the nucleus
_GRANULE_LOOK = {"small": (1.9, 0.75, 0.45, 0.0), "round": (2.6, 1.15, 0.92, 0.1), "coarse": (4.3, 1.9, 0.88, 0.45)}
_RADIUS = {"big": (20.2, 25.5), "small": (14.5, 18.2)}
# share of the cell that a nucleus covers, for a low and for a high nuclear cytoplasmic ratio
_NUCLEUS_SHARE = {"compact": ((0.34, 0.60), (0.76, 0.90)), "drawn out": ((0.32, 0.52), (0.66, 0.80))}
_COMPACT = ("unsegmented-round", "unsegmented-indented", "irregular")


def _blend(image: Array, mask: Array, colour: tuple[float, ...] | Array) -> None:
    """Paint `colour` ([3] or [size, size, 3]) over the image in place where `mask` (0..1) says."""
    image += mask[..., None] * (np.asarray(colour, dtype=np.float32) - image)


def _background(rng: Rng, size: int, reach: float) -> Array:
    """Return plasma with red cells and, now and then, a platelet, kept off the middle of the image."""
    x, y = pixel_grid(size)
    base = _LAVENDER if rng.random() < _LAVENDER_SHARE else _CREAM
    image = np.empty((size, size, 3), dtype=np.float32)
    image[:] = np.asarray(base, dtype=np.float32) + rng.normal(0, 1.5, 3).astype(np.float32)
    for _ in range(int(rng.integers(3, 8))):
        radius, angle = rng.uniform(9, 13.5), rng.uniform(0, 2 * np.pi)
        away = reach + radius * rng.uniform(0.75, 1.5)
        dx, dy = x - np.float32(32 + away * np.cos(angle)), y - np.float32(32 + away * np.sin(angle))
        distance = np.hypot(dx * np.float32(rng.uniform(0.85, 1.15)), dy)
        cover = np.clip((np.float32(radius) - distance) * np.float32(0.7) + np.float32(0.5), 0, 1)
        pallor = np.clip(1 - distance / np.float32(radius * rng.uniform(0.45, 0.7)), 0, 1) * rng.uniform(0, 0.9)
        _blend(
            image,
            cover * (1 - pallor.astype(np.float32)),
            np.asarray(_RED_CELL, dtype=np.float32) + np.float32(rng.normal(-4, 6)),
        )
    if rng.random() < 0.1:
        angle = rng.uniform(0, 2 * np.pi)
        distance = np.hypot(x - np.float32(32 + 28 * np.cos(angle)), y - np.float32(32 + 28 * np.sin(angle)))
        _blend(image, np.clip(np.float32(rng.uniform(1.5, 3)) - distance, 0, 1), (110.0, 70.0, 145.0))
    return image


def _cytoplasm_colour(rng: Rng, cell: Attributes) -> Array:
    """Return the colour [3] of the cytoplasm."""
    colour = np.asarray(_CYTOPLASM[cell["cytoplasm colour"]], dtype=np.float32)
    return colour + rng.normal(0, 4, 3).astype(np.float32)


def _add_texture(rng: Rng, image: Array, cell: Attributes, cytoplasm: Array) -> None:
    """Leave the cytoplasm smooth or give it the look of ground glass: pale flakes on a darker ground of equal mean."""
    size = image.shape[0]
    if cell["cytoplasm texture"] == "clear":
        grain = smooth_noise(rng, size, 5.0) * np.float32(2.5)
    else:
        grain = smooth_noise(rng, size, 2.1) * np.float32(19.0) + smooth_noise(rng, size, 1.0) * np.float32(5.0)
    image += (cytoplasm * grain)[..., None] * np.asarray((1.0, 1.0, 0.75), dtype=np.float32)


def _nucleus_paint(rng: Rng, size: int, cell: Attributes, depth: Array) -> Array:
    """Return the colours [size, size, 3] of the nucleus; `depth` is the distance in pixels from its edge inwards."""
    density = cell["chromatin density"]
    colour = np.asarray(_NUCLEUS[density], dtype=np.float32) + rng.normal(0, 4, 3).astype(np.float32)
    if density == "densely":
        texture = smooth_noise(rng, size, 2.6) * np.float32(8.0) + smooth_noise(rng, size, 1.0) * np.float32(5.0)
    else:
        texture = smooth_noise(rng, size, 2.0) * np.float32(13.0) + smooth_noise(rng, size, 1.0) * np.float32(6.0)
    rim = np.clip(1 - np.abs(depth - np.float32(0.6)) / np.float32(1.4), 0, 1) * np.float32(16.0)
    return colour + (texture - rim)[..., None]


def _add_granules(rng: Rng, image: Array, cell: Attributes, body: Array, nucleus: Array) -> None:
    """Scatter granules over the cytoplasm and, the coarser they are, over the nucleus as well."""
    if cell["granularity"] == "no":
        return
    spacing, radius, presence, over_nucleus = _GRANULE_LOOK[cell["granule type"]]
    cover = spots(rng, image.shape[0], spacing, radius * rng.uniform(0.92, 1.08), presence)
    colour = np.asarray(_GRANULE[cell["granule colour"]], dtype=np.float32) + rng.normal(0, 5, 3).astype(np.float32)
    where = body * (1 - np.float32(1 - over_nucleus) * nucleus)
    # The stain of the granules also tints the cytoplasm between them.
    _blend(image, body * (1 - nucleus) * np.float32(0.25 if cell["granule colour"] != "purple" else 0.12), colour)
    _blend(image, cover * where * np.float32(0.9), colour)


def _add_vacuoles(rng: Rng, image: Array, radius: float, centre: tuple[float, float], body: Array) -> None:
    """Punch a handful of pale bubbles into the outer part of the cell."""
    x, y = pixel_grid(image.shape[0])
    middle = rng.uniform(0, 2 * np.pi)
    for _ in range(int(rng.integers(4, 10))):
        angle = middle + rng.normal(0, 1.3)
        away = radius * rng.uniform(0.4, 0.88)
        distance = np.hypot(
            x - np.float32(centre[0] + away * np.cos(angle)), y - np.float32(centre[1] + away * np.sin(angle))
        )
        bubble = np.clip((np.float32(rng.uniform(1.3, 2.8)) - distance) * np.float32(1.2) + np.float32(0.4), 0, 1)
        _blend(image, bubble * body * np.float32(0.9), (238.0, 222.0, 226.0))


def _finish(rng: Rng, image: Array) -> NDArray[np.uint8]:
    """Apply the effects of camera and file format: exposure, colour balance, noise."""
    gain = rng.normal(0.99, 0.02) * (1 + rng.normal(0, 0.007, 3))
    image *= gain.astype(np.float32)
    image += rng.standard_normal(image.shape, dtype=np.float32) * np.float32(rng.uniform(0.8, 2.5))
    return np.clip(image, 0, 255).astype(np.uint8)


def _nucleus_mask(rng: Rng, cell: Attributes, u: Array, v: Array, inside: Array, radius: float) -> tuple[Array, Array]:
    """Return the nucleus as a soft mask and the depth of each pixel in it, in 64ths of the image."""
    low, high = _NUCLEUS_SHARE["compact" if cell["nucleus shape"] in _COMPACT else "drawn out"]
    share = rng.uniform(*(low if cell["nuclear cytoplasmic ratio"] == "low" else high))
    turn = rng.uniform(0, 2 * np.pi)
    cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    drift = rng.uniform(-0.12, 0.12, 2).astype(np.float32) * np.float32(1 - share)
    x, y = cos * u - sin * v - drift[0], sin * u + cos * v - drift[1]
    field = nucleus_field(rng, x, y, cell["nucleus shape"], share)
    # Edges wobble a little, as real ones do.
    field = field + smooth_noise(rng, u.shape[0], 7.0) * np.float32(0.018)
    values = field[inside > 0.5]
    level = np.partition(values, int(share * (values.size - 1)))[int(share * (values.size - 1))]
    depth = (level - field) * np.float32(radius)
    return np.clip(depth + np.float32(0.5), 0, 1), depth


def render_cell(attributes: Attributes, rng: random.Random | Rng, size: int = 64) -> Image.Image:
    """Draw one cell.

    Args:
        attributes: the twelve attributes with values of `ATTRIBUTES`.
        rng: source of everything that the attributes leave open (turn, lobes, neighbours, exposure, noise).
        size: side of the square image in pixels.

    Returns:
        An RGB image of `size` x `size` pixels, a function of the arguments alone.
    """
    draw = rng if isinstance(rng, np.random.Generator) else np.random.default_rng(rng.getrandbits(64))
    x, y = pixel_grid(size)
    radius = float(draw.uniform(*_RADIUS[attributes["cell size"]]))
    centre = (float(32 + draw.normal(0, 1.2)), float(32 + draw.normal(0, 1.2)))
    u, v = (x - np.float32(centre[0])) / np.float32(radius), (y - np.float32(centre[1])) / np.float32(radius)
    distance, angle = np.hypot(u, v), np.arctan2(v, u)
    edge = outline_radius(draw, angle, attributes["cell shape"] == "irregular")
    body = np.clip((edge - distance) * np.float32(radius) * np.float32(0.9) + np.float32(0.5), 0, 1)
    inner = np.clip((edge - distance) * np.float32(radius) - np.float32(0.2), 0, 1)
    # A nucleus that fills its cell takes on the cell's outline; a small one keeps its own.
    warp = edge ** np.float32(0.7 if attributes["nuclear cytoplasmic ratio"] == "high" else 0.2)
    nucleus, depth = _nucleus_mask(draw, attributes, u / warp, v / warp, inner, radius)
    nucleus *= inner

    image = _background(draw, size, radius)
    _blend(image, body, _cytoplasm_colour(draw, attributes))
    membrane = body * np.clip(1 - (edge - distance) * np.float32(radius / 2), 0, 1)
    _blend(image, membrane * np.float32(0.25), (140.0, 110.0, 165.0))
    _blend(image, nucleus, _nucleus_paint(draw, size, attributes, depth))
    _add_granules(draw, image, attributes, body, nucleus)
    _add_texture(draw, image, attributes, body * (1 - nucleus))
    if attributes["cytoplasm vacuole"] == "yes":
        _add_vacuoles(draw, image, radius, centre, body)
    return Image.fromarray(_finish(draw, image))
