"""The model of a finished training run, ready to answer questions: its weights, and how its images were changed."""

from collections.abc import Mapping
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


CHANGES = ("center_crop", "pad_to_square")
"""Keys of a dataset that decide how the model sees an image."""


def other_images(checkpoint: str, questions: Any) -> str | None:
    """Compare how a run's training images and the questions' images are changed before the model sees them.

    Args:
        checkpoint: Weights of the model.
        questions: The component of the questions, which may hold others.

    Returns:
        A sentence on what differs; None if nothing does, or if the weights are not those of a run.
    """
    path = Path(checkpoint).parent / "config.yaml"
    if not path.is_file():
        return None
    try:
        trained = saved_keys(path, _Keys).get("dataset", {})
    except ConfigError:
        return None
    differing = [
        f"{key}: {_shown(_values(trained, key))} in training, {_shown(_values(questions, key))} here"
        for key in CHANGES
        if _values(trained, key) != _values(questions, key)
    ]
    if not differing:
        return None
    return (
        f"warning: the model of {path.parent} was trained on images that were cut or padded in another way ("
        f"{'; '.join(differing)}), so that its answers may be wrong. Set questions.center_crop and "
        "questions.pad_to_square as in training, if this is not what you want."
    )


def _values(component: Any, key: str) -> set[Any]:
    """All values of a key in a component and in what it holds; those that change nothing are left out."""
    if isinstance(component, Mapping):
        own = {component[key]} if component.get(key) not in (None, 1, 1.0) else set()
        return own.union(*(_values(value, key) for value in component.values()))
    if isinstance(component, list | tuple):
        return set().union(*(_values(value, key) for value in component))
    return set()


def _shown(values: set[Any]) -> str:
    return ", ".join(map(str, sorted(values))) or "unchanged"
