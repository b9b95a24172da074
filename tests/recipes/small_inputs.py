"""Inputs of a small run: a mini model with random weights, pictures, and two questions on each."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from medtune.models.mini import mini_vlm, train_mini_tokenizer

SHAPES = ["round", "oval", "lobed"]


def write_model(folder: Path, std: float = 0.4) -> None:
    """Write a tokenizer, and weights that are random enough for answers that differ."""
    texts = ["What is the cell size? big small nucleus"]
    vocab_size = train_mini_tokenizer(texts, 300, folder / "tokenizer").vocab_size
    assert vocab_size == 300
    torch.manual_seed(2)
    model = mini_vlm(vocab_size, image_size=16, embed_dim=32, vision_layers=2)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=std)
    save_file(model.state_dict(), folder / "weights.safetensors")


def of_model(folder: Path) -> list[str]:
    """Overrides that make a config use the model of :func:`write_model`."""
    return [
        f"checkpoint={folder}/weights.safetensors", "model.vocab_size=300", "model.image_size=16",
        "model.embed_dim=32", "model.vision_layers=2", f"transform.path={folder}/tokenizer", "transform.image_size=16",
    ]  # fmt: skip


def write_pictures(folder: Path, count: int, width: int = 20) -> None:
    """Write pictures of noise, ``cell0.png`` and on, 20 pixels high."""
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, (20, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"cell{i}.png")


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_questions(folder: Path, pictures: int) -> None:
    """Write ``test.jsonl`` with two questions on each picture."""
    rows = []
    for i in range(2 * pictures):
        answer = SHAPES[i // 2 % 3]
        meta = {"attribute": ("cell shape", "nucleus shape")[i % 2], "options": SHAPES, "answer": answer}
        messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
        rows.append({"id": f"q{i}", "images": [f"cell{i // 2}.png"], "messages": messages, "meta": meta})
    write_rows(folder / "test.jsonl", rows)
