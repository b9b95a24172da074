"""Whole runs of a tiny InternVL: the trainer needs nothing of its own for the family."""

from pathlib import Path
from typing import Any

import pytest
import torch

from medtune.config import instantiate
from tests.runs import largest_difference, launch, losses, tiny, weights

SIZES = {
    "vocab_size": 1024,
    "embed_dim": 16,
    "vision_layers": 2,
    "decoder_layers": 2,
    "image_size": 16,
    "patch_size": 4,
}
ADAPTED: dict[str, Any] = {
    "model": {
        "_component_": "medtune.models.mini.lora_mini_internvl",
        **SIZES,
        "lora_attn_modules": ["q_proj", "v_proj", "output_proj"],
        "lora_rank": 2,
        "lora_parts": ["vision"],
        "decoder": "qwen2",
    },
    "transform": {
        "_component_": "medtune.models.mini.mini_internvl_transform",
        **{key: SIZES[key] for key in ("image_size", "patch_size")},
    },
    "trainable": ["adapter", "projection"],
    "batch_size": 4,
}


def test_instfree_by_adapters_and_connector_on_one_process_and_two(tmp_path: Path) -> None:
    """The exported weights are merged: what carries no adapter and is not trained stays as it was, to the bit."""
    found = []
    for world in (1, 2):
        folder = tmp_path / str(world)
        assert launch(tiny(folder, **{**ADAPTED, "batch_size": 4 // world}), world) == [0] * world
        found.append((losses(folder), weights(folder)))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-6)
    assert largest_difference(found[0][1], found[1][1]) < 1e-6
    torch.manual_seed(11)
    start = instantiate(tiny(tmp_path, **ADAPTED).model).state_dict()
    end = found[0][1]
    changed = {name for name, value in start.items() if name in end and not torch.equal(value, end[name])}
    vision = {name for name in changed if name.startswith("encoder.vision.")}
    assert {name for name in start if name.startswith("encoder.projection.")} == changed - vision
    assert vision and all(".attn." in name or ".mlp." in name for name in vision)
