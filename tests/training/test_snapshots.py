"""What makes two runs two: each part of a run's identity, and parameters that are put back."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from medtune.errors import CheckpointError
from medtune.training.checkpointer import identity, put_back
from medtune.training.checkpoints import check_identity
from tests.runs import LORA, SFT, SGD, tiny


def feed(data: str = "d" * 64, samples: int = 4, usable: str = "all") -> Any:
    source, plan = SimpleNamespace(fingerprint=lambda: data), SimpleNamespace(global_batch=samples)
    return SimpleNamespace(source=source, plan=plan, checked=SimpleNamespace(usable=usable))


def compared(folder: Path, saved: dict[str, Any], current: dict[str, Any]) -> str:
    """What a run says that finds the checkpoint of another one; empty where it goes on."""
    try:
        check_identity(folder, json.loads(json.dumps(saved)), current)
    except CheckpointError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"objective": {"alpha": 0.5}}, "objective.alpha: 0.8 there, 0.5 here"),
        ({"objective": {"warmup_steps": 5}}, "objective.warmup_steps: 4 there, 5 here"),
        (
            {"objective": SFT["objective"]},
            "objective._component_: medtune.objectives.InstFree there, medtune.objectives.SFT",
        ),
        ({"model": {"embed_dim": 32}}, "model.embed_dim: 16 there, 32 here"),
        ({"model": LORA}, "model.lora_rank: absent there, 2 here"),
        ({"trainable": ["vision"]}, 'trainable: ["vision", "projection", "fusion"] there, ["vision"] here'),
        ({"optimizer": SGD}, "optimizer: torch.optim.AdamW there, torch.optim.SGD here"),
        ({"seed": 12}, "seed: 11 there, 12 here"),
        ({"dtype": "bf16"}, "dtype: fp32 there, bf16 here"),
        ({"sampling": "balanced"}, "sampling: uniform there, balanced here"),
        ({"bucket": False}, "bucket: true there, false here"),
        ({"transform": {"image_size": 32}}, "transform.image_size: 16 there, 32 here"),
    ],
)
def test_another_run_is_refused_by_the_key_that_differs(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    saved = identity(tiny(tmp_path), feed(), feed("v" * 64))
    message = compared(tmp_path, saved, identity(tiny(tmp_path, **changes), feed(), feed("v" * 64)))
    assert f"\n  {said}" in message and "belongs to another run" in message


@pytest.mark.parametrize(
    ("held", "said"),
    [
        ((feed("e" * 64), feed("f" * 64)), "data: dddddddddddd... there, eeeeeeeeeeee... here"),
        ((feed(), feed("e" * 64)), "validation: ffffffffffff... there, eeeeeeeeeeee... here"),
        ((feed(samples=8), feed("f" * 64)), "global_batch: 4 there, 8 here"),
        ((feed(usable="fewer"), feed("f" * 64)), "usable: all there, fewer here"),
        ((feed(), feed("f" * 64, usable="fewer")), "usable_validation: all there, fewer here"),
    ],
)
def test_other_data_or_more_of_them_in_a_step(held: Any, said: str, tmp_path: Path) -> None:
    saved = identity(tiny(tmp_path), feed(), feed("f" * 64))
    assert f"\n  {said}" in compared(tmp_path, saved, identity(tiny(tmp_path), *held))


def test_other_base_weights(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(3)}, tmp_path / "base.safetensors")
    config = tiny(tmp_path, checkpoint=str(tmp_path / "base.safetensors"))
    saved = identity(config, feed())
    save_file({"a": torch.ones(3)}, tmp_path / "base.safetensors")
    assert "\n  weights: " in compared(tmp_path, saved, identity(config, feed()))
    assert "\n  weights: random there" in compared(tmp_path, identity(tiny(tmp_path), feed()), saved)


def test_what_may_change_on_resuming(tmp_path: Path) -> None:
    """The optimizer's options, clipping, rates, schedule, length, and all that only writes."""
    saved = identity(tiny(tmp_path), feed())
    free: dict[str, Any] = {
        "optimizer": {"lr": 1.0, "weight_decay": 0.5, "betas": [0.8, 0.9], "eps": 1e-5},
        "clip_grad_norm": 5.0,
        "learning_rates": {"proxy": 3.0},
        "schedule": {"kind": "linear", "warmup_steps": 1},
        "max_steps": 99,
        "num_workers": 2,
        "save_every_steps": 1,
        "export": "none",
        "batch_size": 2,  # what counts is the samples of a step
    }
    assert compared(tmp_path, saved, identity(tiny(tmp_path / "elsewhere", **free), feed())) == ""


@pytest.mark.parametrize("saved", [{"c": torch.zeros(2)}, {"a": torch.zeros(3)}], ids=["name", "shape"])
def test_a_parameter_that_the_model_does_not_have(saved: dict[str, torch.Tensor], tmp_path: Path) -> None:
    named = {"a": nn.Parameter(torch.ones(2)), "b": nn.Parameter(torch.ones(2))}
    with pytest.raises(CheckpointError, match="the model has no parameter"):
        put_back(tmp_path, saved, named, torch.device("cpu"))
    put_back(tmp_path, {"a": torch.tensor([5.0, 6.0])}, named, torch.device("cpu"))
    assert named["a"].tolist() == [5.0, 6.0] and named["b"].tolist() == [1.0, 1.0]
