"""What a plan says of its estimate."""

from types import SimpleNamespace
from typing import Any

from medtune.config import load_config
from medtune.training import plan as plan_module
from medtune.training.config import TrainConfig


def test_what_the_estimate_of_memory_is_of() -> None:
    config = load_config("instfree/mini", TrainConfig, ["batch_size=3"])
    measured: Any = SimpleNamespace()
    for data, items, said in (
        (None, {"logits": 1e9}, f"batch 3 of {plan_module.ASSUMED_TOKENS} tokens (assumed); an estimate"),
        (measured, {"logits": 1e9}, "batch 3 of the longest samples; an estimate"),
        (measured, {"weights": 1e9}, "batch 3 of pictures; an estimate"),
        (None, {"weights": 1e9}, "batch 3 of pictures; an estimate"),
    ):
        assert said in plan_module._memory_text(config, data, items)
