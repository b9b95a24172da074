"""frozen: parameters of a trained part, chosen by name, that stay as they were; on one process and on two."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from medtune.config import save_config
from medtune.models.mini import mini_vlm
from medtune.models.weights import load_weights, save_hf
from medtune.training.plan import plan
from tests.runs import SFT, TINY, launch, tiny

FREEZE = ["decoder.layers.1.*", "encoder.projection.layers.0.attn.*"]
SIZES = {key: value for key, value in TINY["model"].items() if key != "_component_"}


def options(base: Path) -> dict[str, Any]:
    return {"trainable": ["decoder", "projection"], "max_steps": 3, "checkpoint": str(base), "frozen": FREEZE, **SFT}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    model = mini_vlm(**SIZES)
    return save_hf(model.state_dict(), model.family, tmp_path_factory.mktemp("base"))


def weights(folder: Path) -> dict[str, Tensor]:
    model = mini_vlm(**SIZES)
    model.load_state_dict(load_weights(folder, model))
    return dict(model.named_parameters())


@pytest.mark.parametrize("world", [1, 2])
def test_they_stay_and_the_others_move(world: int, base: Path, tmp_path: Path) -> None:
    assert launch(tiny(tmp_path / "run", batch_size=4 // world, **options(base)), world) == [0] * world
    before, after = weights(base), weights(tmp_path / "run" / "weights")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    parts = mini_vlm(**SIZES).parts()
    frozen = ("decoder.layers.1.", "encoder.projection.layers.0.attn.")
    expected = {name for name in [*parts["decoder"], *parts["projection"]] if not name.startswith(frozen)}
    assert moved == expected


def test_a_run_continues_only_with_the_same_ones(base: Path, tmp_path: Path) -> None:
    assert launch(tiny(tmp_path / "run", **options(base))) == [0]
    more = {**options(base), "max_steps": 4}
    assert launch(tiny(tmp_path / "run", **{**more, "frozen": FREEZE[:1]})) != [0]
    assert launch(tiny(tmp_path / "run", **more)) == [0]


def test_the_plan_counts_them(base: Path, tmp_path: Path) -> None:
    save_config(tiny(tmp_path / "run", **options(base)), tmp_path / "config.yaml")
    shown = plan(str(tmp_path / "config.yaml")).text().splitlines()
    row = next(line.replace(",", "").split() for line in shown if line.strip().startswith("frozen "))
    numbers = [
        p.numel()
        for name, p in mini_vlm(**SIZES).named_parameters()
        if name.startswith(("decoder.layers.1.", "encoder.projection.layers.0.attn."))
    ]
    assert row == ["frozen", str(sum(numbers)), "0", str(sum(numbers))]
