"""Outputs that a method asks for before training: for any method, in every stage, with the model in its first state."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from medtune.data.images import ImageRoot
from medtune.data.items import SampleItems
from medtune.data.shards import Shards
from medtune.errors import DataError
from medtune.objectives.base import Precompute, Stage, StepOutput, image_features, keep_sample
from medtune.objectives.sft import SFT
from medtune.training.trainer import Trainer
from tests.runs import die_at, launch, losses, metrics, tiny

STEPS = 3


@dataclass(frozen=True)
class FixedSamples(SampleItems):
    """Samples as they are, with the tokens as their contents; ``name`` tells two kinds apart."""

    name: str = ""

    def contents(self, item: dict[str, Any]) -> list[int]:
        return list(item["tokens"])


class Distance(SFT):
    """Two stages that report how far the mean state of a row is from what it was before training."""

    def __init__(self, folder: str, different: bool = False) -> None:
        super().__init__(chunk_tokens=0)
        self.folder, self.different = folder, different

    def stages(self, trainable: tuple[str, ...], epochs: int, steps: int | None) -> list[Stage]:
        return [Stage("first", trainable, epochs, STEPS), Stage("second", trainable, epochs, STEPS)]

    def items(self, source: Any, usable: Any, stage: Stage) -> Any:
        return FixedSamples(keep_sample, stage.name if self.different else "")

    def precompute(self) -> Precompute:
        return Precompute(self.folder, "objective.folder", "mean states", 4, {}, self.outputs)

    def outputs(self, model: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
        assert not model.training and not torch.is_grad_enabled()
        hidden = model.hidden(batch["tokens"], image_features(model, batch), vision_mask=batch["vision_mask"])
        return {"mean": hidden.mean(dim=2).masked_fill(~batch["padding"], 0.0).sum(dim=1)}

    def forward(self, model: Any, batch: dict[str, Any]) -> StepOutput:
        output = super().forward(model, batch)
        with torch.no_grad():
            model.eval()
            now = self.outputs(model, batch)["mean"]
            model.train()
        moved = (now - batch["precomputed"]["mean"]).abs().sum()
        return StepOutput(output.loss_sum, output.weight, {"moved": moved})


def run(folder: Path, cache: Path, **more: Any) -> Any:
    objective = {"_component_": "tests.training.test_outputs.Distance", "folder": str(cache), **more}
    dataset = {"_component_": "medtune.datasets.cells.rendered_cells_dataset", "size": 10, "seed": 5}
    dataset |= {"kind": "instructions", "image_size": 16}
    return tiny(folder, objective=objective, learning_rates={}, dataset=dataset)


@pytest.mark.parametrize("world", [1, 2])
def test_batches_of_every_stage_hold_what_the_untrained_model_gave(world: int, tmp_path: Path) -> None:
    config = run(tmp_path / "run", tmp_path / "cache")
    config.batch_size = 4 // world
    assert launch(config, world) == [0] * world
    moved = [line["moved"] * line["weight"] for line in metrics(tmp_path / "run") if "loss" in line]
    assert len(moved) == 2 * STEPS and moved[0] < 1e-4 < moved[1] and moved[STEPS] > 1e-4
    assert (tmp_path / "cache" / "train" / "manifest.json").is_file()


def test_a_resumed_run_reads_what_the_untrained_model_gave(tmp_path: Path) -> None:
    assert launch(run(tmp_path / "whole", tmp_path / "a")) == [0]
    config = run(tmp_path / "killed", tmp_path / "b")
    config.save_every_steps = 2
    assert launch(config, harm=die_at(3)) == [9]
    assert launch(config) == [0]
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    moved = [[line["moved"] for line in metrics(tmp_path / name) if "loss" in line] for name in ("killed", "whole")]
    assert moved[0] == moved[1]


def disk_fails() -> None:
    """One image can be checked, but not be read afterwards."""
    original = ImageRoot.load

    def load(self: ImageRoot, name: str, where: str) -> Image.Image:
        if name == "3.png":
            raise DataError(f"{name}: the disk has failed")
        return original(self, name, where)

    ImageRoot.load = load  # type: ignore[method-assign]


def test_a_sample_that_could_not_be_read_has_a_reason_in_place_of_outputs(tmp_path: Path) -> None:
    """Its place in the batch is taken by another sample, whose outputs must not become its own when it is mended."""
    rows = []
    for number in range(6):
        Image.effect_noise((16, 16), 90).convert("RGB").save(tmp_path / f"{number}.png")
        turns = [("user", f"Question {number}?"), ("assistant", f"Answer {number}.")]
        messages = [{"role": role, "content": text} for role, text in turns]
        rows.append({"id": f"row-{number}", "images": [f"{number}.png"], "messages": messages})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = {"_component_": "medtune.datasets.jsonl_dataset", "source": str(tmp_path / "rows.jsonl")}
    for name, harm in (("broken", disk_fails), ("mended", None)):
        config = run(tmp_path / name, tmp_path / "cache")
        config.dataset, config.on_error = {**dataset, "image_root": str(tmp_path)}, "skip"
        assert launch(config, harm=harm) == [0]
        skipped = json.loads((tmp_path / name / "summary.json").read_text())["skipped"]
        assert skipped == [{"id": "row-3", "reason": "3.png: the disk has failed"}]
        moved = [line["moved"] for line in metrics(tmp_path / name) if "loss" in line]
        assert moved[0] < 1e-4
    outputs = Shards(tmp_path / "cache" / "train", np.array([0, 6]), key="objective.folder")
    with pytest.raises(DataError, match="3.png: the disk has failed"):
        outputs.item(3)
    means = [outputs.item(number)["mean"] for number in (0, 1, 2, 4, 5)]
    assert len({float(mean) for mean in means}) == 5


def test_items_that_change_with_the_stage_are_an_error_of_the_method(tmp_path: Path) -> None:
    trainer = Trainer(run(tmp_path / "run", tmp_path / "cache", different=True))
    with pytest.raises(ValueError, match="the same in every stage"):
        trainer.setup()
    trainer._close()
