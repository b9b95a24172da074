"""MedMNIST's files with made-up pixels, in the owners' layout."""

from pathlib import Path
from typing import Any

import numpy as np

from medtune.datasets.medmnist import FACTS


def medmnist_arrays(name: str, sizes: tuple[int, int, int] = (9, 4, 6), side: int = 28) -> dict[str, np.ndarray]:
    """Arrays of a set: every class occurs as soon as there are as many images; seeded by the set's name."""
    facts = FACTS[name]
    rng = np.random.default_rng(sum(map(ord, name)))
    classes = len(facts.words.classes)
    arrays = {}
    for split, size in zip(("train", "val", "test"), sizes, strict=True):
        shape = (size, side, side, 3) if facts.colour else (size, side, side)
        arrays[f"{split}_images"] = rng.integers(0, 256, shape, dtype=np.uint8)
        if facts.words.task == "multi_label":
            arrays[f"{split}_labels"] = (rng.random((size, classes)) < 0.15).astype(np.uint8)
        else:
            arrays[f"{split}_labels"] = (np.arange(size, dtype=np.uint8) % classes)[:, None]
    return arrays


def write_medmnist(folder: Path, name: str, file: str | None = None, **changes: Any) -> Path:
    """Write a set's file; ``changes`` replaces arrays, None leaves one out."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (file or f"{name}mnist.npz")
    arrays = {**medmnist_arrays(name), **changes}
    np.savez_compressed(path, **{key: value for key, value in arrays.items() if value is not None})
    return path
