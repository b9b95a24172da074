"""Prepared classification questions on a few drawn pictures: a multi-class, a multi-label and an ordinal set."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from medtune.data.labels import LabelTask, Target

CLASSES: dict[str, tuple[LabelTask, tuple[str, ...]]] = {
    "cells": ("multi_class", ("round", "long", "torn")),
    "chest": ("multi_label", ("effusion", "mass")),
    "grades": ("ordinal", ("mild", "grave")),
}
INDICES = {"cells": ((0,), (1,), (2,)), "chest": ((), (0,), (0, 1)), "grades": ((0,), (1,), (1,))}


def rows(copies: int = 4) -> list[dict[str, Any]]:
    """Nine rows a copy: three of each set."""
    found = []
    for copy in range(copies):
        for name, (task, classes) in CLASSES.items():
            for number, indices in enumerate(INDICES[name]):
                target = Target(name, task, classes, indices)
                found.append(
                    {
                        "id": f"{name}/{copy}/{number}",
                        "images": [f"{name}_{copy}_{number}.png"],
                        "messages": [
                            {"role": "user", "content": f"What is shown in this {name} picture?"},
                            {"role": "assistant", "content": target.text},
                        ],
                        "meta": target.to_meta(),
                    }
                )
    return found


def write(folder: Path, table: list[dict[str, Any]] | None = None, name: str = "train") -> str:
    """Write rows and noisy pictures whose brightness tells the label; the JSON Lines file."""
    table = rows() if table is None else table
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(7)
    for row in table:
        level = 40 + 50 * int(row["images"][0][-5])
        for image in row["images"]:
            pixels = np.clip(draw.normal(level, 25, (12, 10, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / image)
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in table), encoding="utf-8")
    return str(path)


def dataset(path: str) -> dict[str, Any]:
    """The config of a file that :func:`write` wrote."""
    return {
        "_component_": "medtune.datasets.jsonl_dataset",
        "source": path,
        "image_root": str(Path(path).parent),
    }


TINY_VIT: dict[str, Any] = {"patch_size": 4, "depth": 2, "embed_dim": 16, "num_heads": 2}
"""Arguments that make vit_tiny_patch16_224 of pictures of 8 px a model of some 7,000 parameters."""
