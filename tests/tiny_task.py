"""A classification task of a few coloured pictures, and an untrained task-specific model of its classes."""

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from medtune.models.classifier.tsm import LabelledSet, TaskModel
from medtune.models.weights import save_hf

SETS = {
    "blobs": LabelledSet("multi_class", ("red", "leaf green", "blue")),
    "bars": LabelledSet("multi_class", ("thin", "very thick")),
    "lone": LabelledSet("multi_class", ("only", "never seen")),
}
QUESTIONS = {
    "blobs": "Analyze the given drawn image for diagnosis.",
    "bars": "Name the bar.",
    "lone": "What else is there?",
}
COLOURS = {"red": (220, 30, 30), "leaf green": (30, 200, 30), "blue": (30, 30, 220), "thin": (9, 9, 9)}


def task_rows(per_class: int = 4) -> list[dict[str, Any]]:
    """Rows of three sets: one with three classes, one with two, and one with a single row that has no negative."""
    answers = [(name, answer) for name in ("blobs", "bars") for answer in SETS[name].classes]
    rows = [(name, answer, copy) for copy in range(per_class) for name, answer in answers] + [("lone", "only", 0)]
    return [
        {
            "id": f"{name}-{answer}-{copy}",
            "images": [f"{name}-{answer}-{copy}.png"],
            "messages": [
                {"role": "user", "content": QUESTIONS[name]},
                {"role": "assistant", "content": answer},
            ],
            "meta": {"set": name, "classes": list(SETS[name].classes)},
        }
        for name, answer, copy in rows
    ]


def write_task(folder: Path, rows: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """Write rows and their pictures, every third one wide; the data set's config."""
    rows = task_rows() if rows is None else rows
    folder.mkdir(parents=True, exist_ok=True)
    for number, row in enumerate(rows):
        answer = row["messages"][-1]["content"]
        for name in row["images"]:
            shade = tuple(min(255, part + 5 * number) for part in COLOURS.get(answer, (200, 200, 90)))
            Image.new("RGB", (32 if number % 3 == 2 else 16, 16), shade).save(folder / name)
    lines = [json.dumps(row) for row in rows]
    (folder / "task.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    source = str(folder / "task.jsonl")
    return {"_component_": "medtune.datasets.jsonl_dataset", "source": source, "image_root": str(folder)}


def write_tsm(folder: Path, sets: dict[str, LabelledSet] = SETS, scale: float = 0.3) -> str:
    """Write a small vision transformer with random weights, as a ``tsm`` run writes a trained one."""
    torch.manual_seed(1)
    shape = {"patch_size": 8, "embed_dim": 12, "depth": 1, "num_heads": 2}
    model = TaskModel("vit_tiny_patch16_224", sets, 16, arguments=shape)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=scale)
    folder.mkdir(parents=True, exist_ok=True)
    save_hf(model.state_dict(), model.family, folder)
    return str(folder)
