"""Outlines, nuclei and textures as arrays on a square pixel grid, used by `render.py`.

Lengths are in cell radii unless a name says pixels; arrays are float32 of shape [size, size].
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.float32]
Rng = np.random.Generator

_FAR = np.float32(9.0)


@cache
def pixel_grid(size: int) -> tuple[Array, Array]:
    """Return the x and y coordinates of pixel centres of a [size, size] image in units of a 64-pixel image."""
    y, x = np.mgrid[:size, :size].astype(np.float32)
    scale = np.float32(64.0 / size)
    return (x + 0.5) * scale, (y + 0.5) * scale


def smooth_noise(rng: Rng, size: int, grain: float) -> Array:
    """Return noise of zero mean and about unit deviation whose blobs are `grain` (64ths of the image) wide."""
    cells = max(2, round(64 / grain))
    noise = rng.standard_normal((cells, cells), dtype=np.float32)
    if cells == size:
        return noise
    return np.asarray(Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC)) * np.float32(1.3)


def spots(rng: Rng, size: int, spacing: float, radius: float, presence: float) -> Array:
    """Return soft round spots (0..1) at the jittered nodes of a grid.

    Args:
        rng: source of all randomness.
        size: image side in pixels.
        spacing: distance of neighbouring nodes, in 64ths of the image.
        radius: radius of a spot in the same unit.
        presence: probability that a node holds a spot.
    """
    x, y = pixel_grid(size)
    nodes = int(64 / spacing) + 4
    jitter = rng.random((2, nodes, nodes), dtype=np.float32)
    absent = rng.random((nodes, nodes)) > presence
    step = np.float32(spacing)
    columns = (np.arange(nodes, dtype=np.float32)[None, :] - 1 + jitter[0]) * step
    rows = (np.arange(nodes, dtype=np.float32)[:, None] - 1 + jitter[1]) * step
    columns[absent] = 1000.0
    across, down = (x[0] / step).astype(np.intp), (y[:, 0] / step).astype(np.intp)
    nearest = np.full((size, size), np.float32(1e6))
    for i in range(3):
        for j in range(3):
            picked = np.ix_(down + i, across + j)
            np.minimum(nearest, (columns[picked] - x) ** 2 + (rows[picked] - y) ** 2, out=nearest)
    return np.clip((np.float32(radius) - np.sqrt(nearest)) * np.float32(1.6) + np.float32(0.5), 0, 1)


def outline_radius(rng: Rng, angle: Array, irregular: bool) -> Array:
    """Return the cell's radius (mean about 1) in the direction of every pixel."""
    stretch = rng.uniform(0.06, 0.18) if irregular else rng.uniform(0.0, 0.04)
    radius = 1 + np.float32(stretch) * np.cos(2 * (angle - rng.uniform(0, np.pi)))
    for order in (3, 4, 5):
        size = rng.uniform(0.05, 0.10) if irregular else rng.uniform(0.0, 0.012)
        radius += np.float32(size) * np.cos(order * angle + np.float32(rng.uniform(0, 2 * np.pi)))
    return radius


def _nearest_two(x: Array, y: Array, centres: NDArray[np.float64], radii: NDArray[np.float64]) -> tuple[Array, Array]:
    """Return the distances to the nearest and the second nearest of some circles, each divided by its radius."""
    first = np.full_like(x, _FAR)
    second = np.full_like(x, _FAR)
    for (cx, cy), radius in zip(centres.astype(np.float32), radii.astype(np.float32), strict=True):
        distance = np.hypot(x - cx, y - cy) / radius
        np.minimum(second, np.maximum(first, distance), out=second)
        np.minimum(first, distance, out=first)
    return first, second


def _to_curve(x: Array, y: Array, points: NDArray[np.float64]) -> Array:
    """Return the distance of every pixel to the nearest of the points of a curve."""
    px, py = points[:, 0].astype(np.float32), points[:, 1].astype(np.float32)
    return np.sqrt(((x - px[:, None, None]) ** 2 + (y - py[:, None, None]) ** 2).min(axis=0))


def _lobes(rng: Rng, x: Array, y: Array, count: int) -> Array:
    """Return the field of `count` lobes on an arc, separated by clefts and joined by thin strands."""
    ring = rng.uniform(0.46, 0.54)
    turn = np.pi if count == 2 else rng.uniform(0.9, 1.0) * 2 * np.pi * (count - 1) / count
    angles = np.linspace(0, turn, count) + rng.uniform(-0.12, 0.12, count)
    centres = np.stack([ring * np.cos(angles), ring * np.sin(angles)], axis=1)
    centres[:, 0] *= 1.0 if count > 2 else rng.uniform(0.9, 1.1)
    first, second = _nearest_two(x, y, centres, rng.uniform(0.85, 1.15, count))
    cleft = np.clip(np.float32(0.16) - (second - first), 0, None) * np.float32(5.0)
    path = np.linspace(0, count - 1, 10)
    strand = np.stack([np.interp(path, np.arange(count), centres[:, axis]) for axis in (0, 1)], axis=1)
    bridge = _to_curve(x, y, strand) + np.float32(0.16 if count == 2 else 0.2)
    return np.minimum(first + cleft, bridge)


def _band(rng: Rng, x: Array, y: Array) -> Array:
    """Return the field of a bent rod: the letter C, U or a shallow S."""
    t = np.linspace(-1, 1, 14)
    if rng.random() < 0.25:
        points = np.stack([0.62 * t, rng.uniform(0.2, 0.32) * np.sin(np.pi * t)], axis=1)
    else:
        half, ring = rng.uniform(1.5, 2.25), rng.uniform(0.46, 0.56)
        points = ring * np.stack([np.cos(half * t), np.sin(half * t)], axis=1)
        points[:, 0] -= 0.12
    return _to_curve(x, y, points)


def nucleus_field(rng: Rng, x: Array, y: Array, shape: str, share: float) -> Array:
    """Return a field that grows from the inside of a nucleus outwards; a level set of it is the nucleus.

    Args:
        rng: source of all randomness.
        x: horizontal coordinates in cell radii, turned at random by the caller.
        y: vertical coordinates; both count from the cell's centre.
        shape: a value of the attribute "nucleus shape".
        share: share of the cell that the nucleus will cover, which sets where a dent lies.
    """
    if shape == "segmented-bilobed":
        return _lobes(rng, x, y, 2)
    if shape == "segmented-multilobed":
        return _lobes(rng, x, y, int(rng.integers(3, 5)))
    if shape == "unsegmented-band":
        return _band(rng, x, y)
    squeeze = np.float32(rng.uniform(1.0, 1.12))
    distance = np.hypot(x * squeeze, y)
    reach = np.float32(np.sqrt(share))
    if shape == "unsegmented-indented":
        dent = np.hypot(x - reach * np.float32(rng.uniform(0.95, 1.1)), y * np.float32(rng.uniform(0.8, 1.2)))
        return distance + np.float32(1.8) * np.clip(reach * np.float32(0.8) - dent, 0, None)
    if shape == "irregular":
        angle = np.arctan2(y, x)
        wave = np.zeros_like(x)
        for order in (2, 3, 5):
            size, phase = rng.uniform(0.13, 0.22), rng.uniform(0, 2 * np.pi)
            wave += np.float32(size) * np.cos(order * angle + np.float32(phase))
        return distance * (1 + wave)
    return distance
