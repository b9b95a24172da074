"""A run's images beside those of the questions that its model is asked."""

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from medtune.generation.run_model import other_images

READER = {"_component_": "medtune.datasets.jsonl_dataset", "source": "a.jsonl"}


def trained(folder: Path, **dataset: Any) -> str:
    """The weights of a run with such a training set."""
    model = {"_component_": "medtune.models.mini.mini_vlm"}
    OmegaConf.save(OmegaConf.create({"model": model, "dataset": {**READER, **dataset}}), folder / "config.yaml")
    return str(folder / "best")


@pytest.mark.parametrize(
    ("dataset", "questions", "said"),
    [
        ({}, {"center_crop": 0.5625}, "center_crop: unchanged in training, 0.5625 here"),
        ({"center_crop": 0.5}, {}, "center_crop: 0.5 in training, unchanged here"),
        ({"pad_to_square": 560}, {"center_crop": 1.0}, "pad_to_square: 560 in training, unchanged here"),
        ({"parts": [{**READER, "center_crop": 0.5}]}, {}, "center_crop: 0.5 in training"),
    ],
)
def test_images_that_are_cut_in_another_way_than_in_training_are_said(
    dataset: dict[str, Any], questions: dict[str, Any], said: str, tmp_path: Path
) -> None:
    found = other_images(trained(tmp_path, **dataset), {**READER, **questions})
    assert found is not None and said in found and "questions.center_crop" in found


@pytest.mark.parametrize(
    ("dataset", "questions"),
    [
        ({}, {}),
        ({"center_crop": 1.0}, {"pad_to_square": None}),
        ({"parts": [{**READER, "center_crop": 0.5}]}, {"center_crop": 0.5}),
    ],
)
def test_images_that_are_cut_alike_are_no_news(
    dataset: dict[str, Any], questions: dict[str, Any], tmp_path: Path
) -> None:
    assert other_images(trained(tmp_path, **dataset), {**READER, **questions}) is None


def test_weights_that_no_run_wrote_are_not_compared(tmp_path: Path) -> None:
    assert other_images(str(tmp_path / "weights"), {**READER, "center_crop": 0.5}) is None
