"""The model of a finished training run, ready to answer questions: its weights, and how its images were changed."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from medtune.config import Component, build, saved_keys
from medtune.errors import ConfigError
from medtune.models.lora.merged import without_adapters

Dtype = Literal["fp32", "bf16"]


@dataclass
class _Keys:
    """The keys of a run's ``config.yaml`` that answering needs; its data and method may no longer exist."""

    model: Component
    transform: Component
    dataset: dict[str, Any] = field(default_factory=dict)
    dtype: Dtype = "bf16"


@dataclass(frozen=True)
class RunModel:
    """A finished run's model.

    Attributes:
        model: Component of its builder, without adapters: they are merged into the weights.
        transform: Component of its transform.
        checkpoint: Folder of its weights.
        dtype: Type in which it was trained.
        center_crop: The share of an image's sides that was kept in training.
        pad_to_square: The side of the square that images were padded to in training, or None.
    """

    model: dict[str, Any]
    transform: Component
    checkpoint: str
    dtype: Dtype
    center_crop: float = 1.0
    pad_to_square: int | None = None


def read_run(folder: Path) -> RunModel:
    """Read what a run's folder says of its model; the weights are not read.

    Raises:
        ConfigError: If the run has no weights, or is not one of a model that answers questions.
    """
    weights = folder / "weights"
    if not weights.is_dir():
        raise ConfigError(
            f"{folder} has no weights: the run is not finished, or it does not export; finish it, or write them with "
            f"`medtune export {folder} --to hf --out DIR`"
        )
    path = folder / "config.yaml"
    values = saved_keys(path, _Keys)
    if not {"model", "transform"} <= values.keys():
        raise ConfigError(f"{path} is not the config of a model that answers questions: model or transform is missing")
    config = build(_Keys, values, str(path))
    crop, side = config.dataset.get("center_crop", 1.0), config.dataset.get("pad_to_square")
    return RunModel(without_adapters(config.model), config.transform, str(weights), config.dtype, crop, side)
