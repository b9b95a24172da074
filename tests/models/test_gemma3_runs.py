"""Whole runs of a tiny Gemma 3, whose output layer is its embedding table: one process and two, sharded."""

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
TRANSFORM = {
    "_component_": "medtune.models.mini.mini_gemma3_transform",
    **{key: SIZES[key] for key in ("image_size", "patch_size")},
}
ADAPTED: dict[str, Any] = {
    "model": {
        "_component_": "medtune.models.mini.lora_mini_gemma3",
        **SIZES,
        "window": 12,
        "lora_rank": 2,
        "lora_parts": ["vision"],
    },
    "transform": TRANSFORM,
    "trainable": ["adapter", "projection"],
    "batch_size": 4,
}
WHOLE: dict[str, Any] = {
    "model": {"_component_": "medtune.models.mini.mini_gemma3", **SIZES, "window": 12},
    "transform": TRANSFORM,
    "trainable": ["decoder"],
    "batch_size": 4,
}


@pytest.mark.parametrize("changes", [ADAPTED, WHOLE], ids=["adapters and projection", "decoder"])
def test_instfree_on_one_process_and_two(changes: dict[str, Any], tmp_path: Path) -> None:
    """With the decoder trained, gradients of the embeddings come from both ends of it."""
    found = []
    for world in (1, 2):
        folder = tmp_path / str(world)
        assert launch(tiny(folder, **{**changes, "batch_size": 4 // world}), world) == [0] * world
        found.append((losses(folder), weights(folder)))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-6)
    # Adam divides small gradients by their size, so that rounding (other sums on other CPUs) grows: 2e-6 was seen.
    assert largest_difference(found[0][1], found[1][1]) < 1e-5
    torch.manual_seed(11)
    start = instantiate(tiny(tmp_path, **changes).model).state_dict()
    changed = {n for n, value in start.items() if n in found[0][1] and not torch.equal(value, found[0][1][n])}
    assert ("decoder.tok_embeddings.weight" in changed) == (changes is WHOLE)
    assert any(name.startswith("encoder.projection.") for name in changed) == (changes is ADAPTED)
