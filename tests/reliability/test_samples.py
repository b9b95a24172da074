"""Samples that are not numbers, and data that change between two starts of one run."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from medtune.errors import TrainingError
from medtune.models.llama3_2_vision._transform import DeepFusionTransform
from medtune.training.trainer import Trainer
from tests.reliability.faults import all_of, assert_same_run, said
from tests.reliability.faults import straight as straight_run
from tests.runs import SFT, die_at, launch, tiny

SAVES: dict[str, Any] = {"save_every_steps": 3}
BROKEN = "cell-000013"


def not_a_number() -> None:
    """One pixel of one sample is not a number."""
    original = DeepFusionTransform.__call__

    def transform(self: DeepFusionTransform, sample: Any, images: Any, **more: Any) -> dict[str, Any]:
        item = original(self, sample, images, **more)
        if sample.id == BROKEN:
            item["images"][0][0, 0, 0, 0] = float("nan")
        return item

    DeepFusionTransform.__call__ = transform  # type: ignore[method-assign]


def compare_weights() -> None:
    """When a step is refused, look whether weights and optimizer are what they were before it."""
    original = Trainer._optimizer_step

    def state(trainer: Trainer) -> list[torch.Tensor]:
        moments = [value for entry in trainer.optimizer.state.values() for value in entry.values()]
        tensors = [*trainer.parts.named().values(), *moments, *trainer.objective.state_dict().values()]
        return [tensor.detach().clone() for tensor in tensors]

    def step(self: Trainer, batches: list[dict[str, Any]]) -> int:
        before = state(self)
        try:
            return original(self, batches)
        except TrainingError:
            same = all(torch.equal(one, other) for one, other in zip(before, state(self), strict=True))
            (self.folder / f"unchanged_{self.runtime.rank}").write_text(str(same))
            raise

    Trainer._optimizer_step = step  # type: ignore[method-assign]


@pytest.mark.parametrize("world", [1, 2])
def test_nan_in_one_sample(world: int, tmp_path: Path) -> None:
    """The run stops before the weights change and writes the batch's ids; after mending it goes on exactly."""
    options = {**SAVES, "batch_size": 4 // world}
    reference = straight_run(tmp_path / "straight", world, **options)
    config = tiny(tmp_path / "run", **options)
    assert launch(config, world, harm=all_of(not_a_number, compare_weights)) == [2] * world
    (report,) = (tmp_path / "run").glob("nonfinite_step_*.json")
    found = json.loads(report.read_text())
    ids = [name for share in found["ids"] for name in share]
    assert BROKEN in ids and len(ids) == 4 and len(found["ids"]) == world
    for rank, sentence in enumerate(said(tmp_path / "run", world)):
        assert "weights were not changed" in sentence and str(report) in sentence
        assert (tmp_path / "run" / f"unchanged_{rank}").read_text() == "True"
    assert launch(config, world) == [0] * world
    assert_same_run(tmp_path / "run", reference)


def reports(folder: Path, name: str) -> dict[str, Any]:
    """Ten image-report pairs on disk."""
    lines = []
    for number in range(10):
        Image.effect_noise((16, 16), 50 + number).convert("RGB").save(folder / f"{number}.png")
        report = [{"role": "assistant", "content": f"cell size: big, nucleus {number}"}]
        lines.append(json.dumps({"id": str(number), "images": [f"{number}.png"], "messages": report, "meta": {}}))
    path = folder / f"{name}.jsonl"
    path.write_text("\n".join(lines))
    return {"_component_": "medtune.datasets.jsonl_dataset", "source": str(path), "image_root": str(folder)}


@pytest.mark.parametrize(("changed", "world"), [("train", 1), ("train", 2), ("held_out", 1)])
def test_a_data_file_that_changes_between_runs(changed: str, world: int, tmp_path: Path) -> None:
    """It is refused by its hash in a message that names the file and what to do; put back, the run goes on exactly."""
    data = {"dataset": reports(tmp_path, "train"), "dataset_val": reports(tmp_path, "held_out")}
    options = {**SAVES, **data, "batch_size": 4 // world, "allow_leakage": ["same_file"]}
    reference = straight_run(tmp_path / "straight", world, **options)
    config = tiny(tmp_path / "run", **options)
    assert launch(config, world, harm=die_at(8)) == [9] * world
    file = tmp_path / f"{changed}.jsonl"
    before = file.read_text()
    file.write_text(before.replace("nucleus 7", "nucleus 8"))
    assert launch(config, world) == [2] * world
    key = {"train": "data", "held_out": "validation"}[changed]
    for sentence in said(tmp_path / "run", world):
        assert (
            f"\n  {key}: " in sentence and f"(the contents of {file}, or how they are read, have changed)" in sentence
        )
        assert "To start anew, set another output_dir; to go on, put back what was there." in sentence
        assert sentence.count(" there, ") == 1
    file.write_text(before)
    assert launch(config, world) == [0] * world
    assert_same_run(tmp_path / "run", reference)


def test_data_that_are_read_in_another_way(tmp_path: Path) -> None:
    data = reports(tmp_path, "train")
    assert launch(tiny(tmp_path / "run", **SAVES, dataset=data), harm=die_at(8)) == [9]
    assert launch(tiny(tmp_path / "run", **SAVES, dataset={**data, "center_crop": 0.5})) == [2]
    assert "how they are read" in said(tmp_path / "run")[0]
    assert launch(tiny(tmp_path / "run", **SAVES, dataset=data, bucket=False, transform={"max_num_tiles": 2})) == [2]
    differences = said(tmp_path / "run")[0]
    assert "bucket: true there, false here" in differences
    assert "transform.max_num_tiles: absent there, 2 here" in differences


@pytest.mark.parametrize("world", [1, 2])
def test_an_image_that_vanishes_between_runs(world: int, tmp_path: Path) -> None:
    """A run asks of every image at every start whether it is as it was; what is remembered of it is not believed."""
    (tmp_path / "data").mkdir()
    options = {**SFT, "dataset": reports(tmp_path / "data", "train"), **SAVES, "batch_size": 4 // world}
    config = tiny(tmp_path / "run", **options, preflight_cache=str(tmp_path / "cache"))
    assert launch(config, world, harm=die_at(5)) == [9] * world
    assert len(list((tmp_path / "cache").iterdir())) == 1
    (tmp_path / "data" / "4.png").unlink()
    assert launch(config, world) == [2] * world
    for sentence in said(tmp_path / "run", world):
        assert "1 of 10 rows of train cannot be used" in sentence and "4.png" in sentence


@pytest.mark.parametrize("key", ["dataset", "dataset_val"])
def test_data_that_shrink_between_runs_with_skip(key: str, tmp_path: Path) -> None:
    """What can be used is part of the run: it is not continued on fewer samples as if it were the same."""
    for name in ("some", "other"):
        (tmp_path / name).mkdir()
    data = {"dataset": reports(tmp_path / "some", "train"), "dataset_val": reports(tmp_path / "other", "val")}
    options = {**SFT, **data, **SAVES, "on_error": "skip", "allow_leakage": ["same_file"]}
    options["preflight_cache"] = str(tmp_path / "cache")
    reference = straight_run(tmp_path / "straight", **options)
    config = tiny(tmp_path / "run", **options)
    assert launch(config, harm=die_at(5)) == [9]
    image = Path(data[key]["image_root"]) / "4.png"
    image.rename(tmp_path / "kept.png")
    assert launch(config) == [2]
    (sentence,) = said(tmp_path / "run")
    name = {"dataset": "usable", "dataset_val": "usable_validation"}[key]
    assert f"\n  {name}: 10 of 10 rows (" in sentence and " there, 9 of 10 rows (" in sentence
    assert "to go on, put back what was there." in sentence and sentence.count(" there, ") == 1
    (tmp_path / "kept.png").rename(image)
    assert launch(config) == [0]
    assert_same_run(tmp_path / "run", reference)
