"""What a plan says of its estimate."""

from types import SimpleNamespace
from typing import Any

import numpy as np
from torch import nn

from medtune.config import load_config
from medtune.objectives.base import Stage
from medtune.training import plan as plan_module
from medtune.training.config import TrainConfig


def test_what_the_estimate_of_memory_is_of() -> None:
    config = load_config("instfree/mini", TrainConfig, ["batch_size=3"])
    measured: Any = SimpleNamespace()
    for data, reads_text, said in (
        (None, True, f"batch 3 of {plan_module.ASSUMED_TOKENS} tokens (assumed); an estimate"),
        (measured, True, "batch 3 of the longest samples; an estimate"),
        (measured, False, "batch 3 of images; an estimate"),
        (None, False, "batch 3 of images; an estimate"),
    ):
        assert said in plan_module._memory_text(config, data, {"weights": 1e9}, reads_text)


def test_the_size_of_a_feature_cache_by_hand() -> None:
    """Ten rows of two tiles, five tokens a tile, eight numbers of four bytes a token."""
    config = load_config("instfree/mini", TrainConfig, ["dtype=fp32", "feature_cache=kept"])
    ones = np.ones(3, dtype=np.int64)
    checked: Any = SimpleNamespace(longest=ones, lengths=ones, problems=[], tiles=2 * ones, most_tiles=2 * ones)
    model = SimpleNamespace(images_as_tokens=False, reads_text=True, embed_dim=8, image_size=16)
    stages = [Stage("train", (), epochs=1)]
    transform = SimpleNamespace(tokens_per_tile=5)
    found = plan_module._data_text(config, plan_module.Data(10, checked), transform, 1, stages, model)
    assert "feature cache        at most 3.2 kB of the model's features below kept" in found


def test_models_beside_the_trained_one_by_hand() -> None:
    """A classifier of six fp32 numbers that was found, and two references as large as the trained model."""
    companions = {name: SimpleNamespace(is_reference=name != "classifier") for name in ("classifier", "old", "older")}
    method: Any = SimpleNamespace(beside={"classifier": nn.Linear(2, 2)}, companions=lambda: companions)
    assert plan_module._companion_bytes(method, 1000.0) == 24 + 2 * 1000.0
