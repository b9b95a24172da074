"""Candidates with images made in a test, and the words of a run of the recipe on them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.judges.judge_server import MODEL
from tests.recipe_modules import load_recipe


def write_candidates(folder: Path, count: int, images: bool = True) -> Path:
    """Write ``candidates.jsonl`` and ``images``: the first answer is short for even numbers."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        name = f"{number}.png"
        if images:
            pixels = np.random.default_rng(number).integers(0, 256, (6, 5, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / name)
        short, long = f"Short {number}.", f"A longer answer with the number {number}."
        rows.append(
            {
                "id": f"q{number}",
                "images": [name] if images else [],
                "messages": [{"role": "user", "content": f"{'<image>' if images else ''}Question {number}?"}],
                "answers": [short, long] if number % 2 == 0 else [long, short],
                "meta": {"seeds": [0, 1], "temperature": 1.2},
            }
        )
    path = folder / "candidates.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def served(folder: Path, url: str, *more: str, out: str = "out") -> list[str]:
    """The words of a run with a served judge."""
    return [
        "--config",
        "judge/openai_server",
        f"candidates={folder / 'candidates.jsonl'}",
        f"image_root={folder / 'images'}",
        f"output_dir={folder / out}",
        f"server.base_url={url}",
        f"server.model={MODEL}",
        "server.concurrency=4",
        "server.timeout=20",
        *more,
    ]


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def manifest_of(folder: Path, out: str = "out") -> dict[str, Any]:
    """The manifest of a run."""
    return json.loads((folder / out / "manifest.json").read_text(encoding="utf-8"))


def judge(*words: str) -> int:
    """Run the recipe in this process; its exit status."""
    return load_recipe("judge").main(list(words))
