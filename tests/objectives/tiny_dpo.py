"""Preference pairs of a few pictures, and models and batches for tests of DPO."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from medtune.config import instantiate
from medtune.data.training_set import TrainingSet
from medtune.datasets import preference_dataset
from medtune.objectives.base import Stage
from medtune.objectives.dpo import DPO
from tests.objectives.tiny_vitask import SIZES, TOKENIZER

QUESTIONS = ("Name it.", "What is shown in this picture?", "Which colour has the drawing, and which form?")
ANSWERS = ("red", "leaf green", "a thin blue bar on the left", "very thick", "two red circles, one in the other")
KINDS = {"llama3_2_vision": "vlm", "internvl": "internvl", "llava": "llava"}
TRAINED = {"full": {}, "lora": {"lora_parts": ["decoder"]}, "lora_tower": {"lora_parts": ["vision", "decoder"]}}


def pair_rows(count: int = 14) -> list[dict[str, Any]]:
    """Rows of pairs with questions and answers of different lengths; the last has an earlier turn in its prompt."""
    rows = []
    for number in range(count):
        chosen, rejected = ANSWERS[number % 5], ANSWERS[(number + 1 + number // 5) % 5]
        prompt = [{"role": "user", "content": QUESTIONS[number % 3]}]
        if number == count - 1:
            prompt += [{"role": "assistant", "content": "A drawing."}, {"role": "user", "content": "And its form?"}]
        names = {"images": [f"{number}.png"], "messages": prompt, "chosen": chosen, "rejected": rejected}
        rows.append({"id": f"pair-{number}", **names})
    return rows


def write_pairs(folder: Path, rows: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """Write rows and their pictures, every third one wide; the data set's config."""
    rows = pair_rows() if rows is None else rows
    folder.mkdir(parents=True, exist_ok=True)
    for number, row in enumerate(rows):
        for name in row["images"]:
            shade = (17 * number % 256, 200 - 9 * number, 40 * (number % 6))
            Image.new("RGB", (32 if number % 3 == 2 else 16, 16), shade).save(folder / name)
    lines = [json.dumps(row) for row in rows]
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    source = str(folder / "pairs.jsonl")
    return {"_component_": "medtune.datasets.preference_dataset", "source": source, "image_root": str(folder)}


def made(name: str, trained: str = "full", dropout: float = 0.0) -> tuple[Any, Any]:
    """A model of random weights, the same for every ``trained``, and its transform."""
    kind = KINDS[name]
    sizes = {**SIZES, "vision_layers": 2, **({"max_num_tiles": 2} if kind == "vlm" else {})}
    lora = {"lora_attn_modules": ["q_proj", "v_proj"], "lora_rank": 2, "lora_dropout": dropout, **TRAINED[trained]}
    prefix, options = ("", {}) if trained == "full" else ("lora_", lora)
    model = instantiate(
        {"_component_": f"medtune.models.mini.{prefix}mini_{kind}", "vocab_size": 1024, **sizes, **options}
    )
    randomise(model)
    tiles = {} if name == "llava" else {"max_num_tiles": 2}
    path = "mini_transform" if kind == "vlm" else f"mini_{kind}_transform"
    transform = instantiate(
        {"_component_": f"medtune.models.mini.{path}", "path": str(TOKENIZER), "image_size": 16, **tiles}
    )
    return model, transform


def randomise(model: nn.Module, seed: int = 5, adapters: bool = False) -> None:
    """Give every parameter (or every B of an adapter) values that its name decides."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ("lora_b" in name) != adapters or ("lora_a" in name):
                continue
            key = sum(name.encode()) + 7919 * seed
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(key))
            parameter.copy_((1.0 if "scale" in name or "norm" in name else 0.0) + 0.15 * noise)


def bound(model: Any, transform: Any, **arguments: Any) -> DPO:
    """The objective, bound to a model."""
    objective = DPO(**{"chunk_tokens": 3, "beta": 0.5, **arguments})
    objective.bind(model, transform, seed=2)
    return objective


def batch_of(folder: Path, objective: DPO, transform: Any, chosen: list[int]) -> dict[str, Any]:
    """A batch of the pairs at these positions."""
    source = preference_dataset(str(folder / "pairs.jsonl"), str(folder))
    items = objective.items(source, np.arange(len(source)), Stage("train", ()))
    samples = TrainingSet(source, items, transform, seed=3)
    return items.collate([samples[(0, index, True)] for index in chosen], transform)
