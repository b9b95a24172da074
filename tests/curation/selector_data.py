"""Preferences of known truth over small stored features, and the three recipes of the selection model."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.recipe_modules import load_recipe

WIDTH = 8
"""Of the text's features, and of the image's."""


def selector_pairs(*words: str) -> int:
    """Run the recipe that makes pairs."""
    return load_recipe("selector_pairs").main(["--config", "selector_pairs/stored", *words])


def selector(*words: str) -> int:
    """Run the recipe that trains the selection model."""
    return load_recipe("selector").main(["--config", "selector/features", *words])


def selection(*words: str) -> int:
    """Run the recipe that selects."""
    return load_recipe("selection").main(["--config", "selection/scores", *words])


def write_lines(path: Path, rows: list[dict[str, Any]]) -> str:
    """Write JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def annotation(number: int, preference: str = "first", **more: Any) -> dict[str, Any]:
    """A choice between a good and a bad answer about an image."""
    return {
        "id": f"c{number}",
        "images": [f"{number}.png"],
        "messages": [{"role": "user", "content": f"<image>\nWhat is in {number}?"}],
        "answers": [f"good {number}", f"bad {number}"],
        "meta": {"caption": f"Caption {number}."},
        "preference": preference,
        "annotator": "a",
        **more,
    }


def conversation(number: int, turns: int = 2) -> dict[str, Any]:
    """A conversation in LLaVA's format, as curate writes it."""
    said = []
    for turn in range(turns):
        tag = "" if turn else "<image>\n"
        said += [
            {"from": "human", "value": f"{tag}Question {turn} of {number}?"},
            {"from": "gpt", "value": f"Answer {turn} of {number}."},
        ]
    return {
        "id": f"v{number}",
        "image": f"{number}.png",
        "domain": {"mri": True},
        "caption": f"Caption {number}.",
        "mentions": ["See it."],
        "conversations": said,
    }


def write_preferences(folder: Path, human: int = 40, rated: int = 40) -> list[str]:
    """Write choices, conversations, ratings and features; return the overrides of the recipe.

    The first number of the text's features is the sample's quality: 1 for good answers, -1 for bad ones, and for rated
    turns a number that the rating follows.
    """
    rng = np.random.default_rng(0)
    quality: dict[str, float] = {}
    for number in range(human):
        quality |= {f"c{number}/answer_1": 1.0, f"c{number}/answer_2": -1.0}
    for number in range(rated):
        quality |= {f"v{number}/turn_{turn}": float(rng.normal()) for turn in (1, 2)}
    table = rng.normal(size=(len(quality), 2 * WIDTH)).astype(np.float32)
    table[:, 0] = list(quality.values())
    np.save(folder / "features.npy", table)
    (folder / "ids.txt").write_text("\n".join(quality))
    ratings = [{"id": name, "rating": round(5 + 2 * value)} for name, value in quality.items() if name.startswith("v")]
    words = [
        f"output_dir={folder / 'pairs'}",
        f"features.path={folder / 'features.npy'}",
        f"features.ids={folder / 'ids.txt'}",
        f"parts=[{WIDTH},{WIDTH}]",
        "model_pairs=200",
    ]
    if human:
        write_lines(folder / "human.jsonl", [annotation(number) for number in range(human)])
        words.append(f"human=[{folder / 'human.jsonl'}]")
    if rated:
        write_lines(folder / "conversations.jsonl", [conversation(number) for number in range(rated)])
        write_lines(folder / "ratings.jsonl", ratings)
        words += [f"records=[{folder / 'conversations.jsonl'}]", f"ratings=[{folder / 'ratings.jsonl'}]"]
    return words


def training(folder: Path, name: str = "run") -> list[str]:
    """Overrides of a small training run on the pairs of a folder."""
    return [
        f"output_dir={folder / name}",
        f"model.features={folder / 'pairs'}",
        f"dataset.source={folder / 'pairs/train.jsonl'}",
        f"dataset_val.source={folder / 'pairs/val.jsonl'}",
        "model.hidden=[16]",
        "optimizer.lr=1e-2",
        "epochs=2",
        "batch_size=16",
        "objective.human_weight=5",
        "preflight_cache=null",
    ]


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Read JSON Lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
