"""Training of a task-specific model on class labels (VITask, 3: the TSM is fine-tuned before the VLM)."""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medtune.config import nearest
from medtune.data.items import Row, SampleTransform, check_answer, measured_row
from medtune.data.labels import Target, classification_target
from medtune.data.sample import Sample
from medtune.data.source import SampleSource
from medtune.errors import ConfigError, DataError, ModelError
from medtune.losses.labels import label_losses, labels_right
from medtune.models.classifier.sets import positive_weights
from medtune.models.classifier.tsm import LabelledSet, PixelTransform, TaskModel
from medtune.objectives.base import Objective, Stage, StepOutput


@dataclass(frozen=True)
class KnownLabels:
    """Accepts samples with exactly one image and known labels.

    Attributes:
        sets: the label sets of the model.
    """

    sets: dict[str, LabelledSet]

    def __call__(self, sample: Sample, rng: random.Random) -> Sample:
        """Return the sample unchanged.

        Raises:
            DataError: if the model cannot learn it.
        """
        self.target(sample)
        return sample

    def target(self, sample: Sample) -> Target:
        """The sample's labels; raises the same errors as a call."""
        target = classification_target(sample)
        if len(sample.images) != 1:
            raise DataError(f"sample {sample.id!r}: {len(sample.images)} images; a classifier looks at one")
        if self.sets.get(target.set) != LabelledSet(target.task, target.classes):
            raise DataError(
                f"sample {sample.id!r}: the set {target.set!r} ({target.task}, {len(target.classes)} classes) is not "
                f"one that the model was built for ({', '.join(self.sets)}); model.sets must name a file with this "
                "data's sets"
            )
        return target


@dataclass(frozen=True)
class LabelledImages:
    """Items of one image and its labels.

    Attributes:
        known: the sets of the model, in the order of its logits.
        flip: sets whose images are mirrored left to right, each with probability 1/2.
    """

    known: KnownLabels
    flip: frozenset[str]

    def __call__(
        self, source: SampleSource, index: int, rng: random.Random, transform: PixelTransform
    ) -> dict[str, Any]:
        """Make the item: pixels [3, h, w], ``target`` [C], and ``among`` [C], which is True at the set's classes."""
        sample = source[index]
        target = self.known.target(sample)
        pixels = transform.pixels(source.open_images(sample)[0])
        mirrored = rng.random() < 0.5 and target.set in self.flip
        right = [name == target.set and number in target.indices for name, number in self._logits()]
        return {
            "id": sample.id,
            "pixels": pixels.flip(-1) if mirrored else pixels,
            "target": torch.tensor(right, dtype=torch.float32),
            "among": torch.tensor([name == target.set for name, _ in self._logits()]),
            "multi_label": target.task == "multi_label",
            "weight": sample.weight,
        }

    def measure(
        self, source: SampleSource, index: int, rng: random.Random, transform: PixelTransform
    ) -> tuple[Row, ...]:
        """One row that counts as one token, the label.

        Raises:
            DataError: if the image cannot be read or the model cannot learn the sample's labels.
        """
        sample = self.known(source[index], rng)
        check_answer(source, sample)
        return (measured_row(source, sample, source.image_sizes(sample), transform),)

    def _logits(self) -> list[tuple[str, int]]:
        """Set and class index of each logit."""
        return [(name, number) for name, labelled in self.known.sets.items() for number in range(len(labelled.classes))]

    def blank(self, item: dict[str, Any]) -> dict[str, Any]:
        """The same image with weight 0."""
        return {**item, "weight": 0.0}

    def collate(self, items: list[dict[str, Any]], transform: Any) -> dict[str, Any]:
        """Stack the items; an image counts as one token."""
        batch = {name: torch.stack([item[name] for item in items]) for name in ("pixels", "target", "among")}
        return {
            **batch,
            "multi_label": torch.tensor([item["multi_label"] for item in items]),
            "weight": torch.tensor([item["weight"] for item in items]),
            "padding": torch.ones(len(items), 1, dtype=torch.bool),
            "ids": [item["id"] for item in items],
        }


class Classification(Objective):
    """Predicts labels from images; the loss is the mean of the images' losses, each with the weight of its sample.

    The loss of an image is that of :func:`medtune.losses.labels.label_losses`.

    Args:
        flip: sets whose training images are mirrored left to right with probability 1/2, drawn per sample and epoch.
            Name only sets in which left and right do not matter. In chest X-rays they matter: the heart is on one side.
        pos_weight: weights of present findings in multi-label sets: a mapping from set to class to weight, in which
            other classes have 1, or a prepared file of training rows, from which
            :func:`medtune.models.classifier.sets.positive_weights` computes them.
    """

    pos_weight: Tensor | None

    higher_is_better = MappingProxyType({"accuracy": True})

    def __init__(
        self, flip: Sequence[str] = (), pos_weight: str | Mapping[str, Mapping[str, float]] | None = None
    ) -> None:
        super().__init__()
        self._weigh = pos_weight
        self.register_buffer("pos_weight", None)
        if isinstance(flip, str | bool) or not all(isinstance(name, str) for name in flip):
            raise ValueError(f"flip is a list of sets, for example [blood], not {flip!r}")
        self.flip = frozenset(flip)

    def bind(self, model: TaskModel, transform: PixelTransform, seed: int) -> None:
        """Check that the transform agrees with the model. A model on the meta device is only planned, not trained.

        Raises:
            ConfigError: if the model or the transform has another type, their settings differ, or ``flip`` names an
                unknown set.
            ModelError: if the model cannot be trained as it is.
        """
        if not isinstance(model, TaskModel):
            raise ConfigError("objective: Classification trains medtune.models.classifier.tsm.task_model")
        self._known = KnownLabels(model.sets)
        planned = all(parameter.is_meta for parameter in model.parameters())
        if not planned and model.missing:
            raise ModelError(model.missing[0])
        if not planned and not isinstance(transform, PixelTransform):
            raise ConfigError("transform: Classification needs medtune.models.classifier.tsm.PixelTransform")
        if isinstance(transform, PixelTransform) and transform.settings() != model.transform.settings():
            raise ConfigError(
                f"transform {transform.settings()} is not the model's {model.transform.settings()}; give both the "
                "same image_size, mean and std"
            )
        if unknown := sorted(self.flip - model.sets.keys()):
            if not model.missing:
                raise ConfigError(f"objective.flip: no set {unknown[0]!r}; the model has {', '.join(model.sets)}")
        if self._weigh is not None and not model.missing:
            self.pos_weight = self._positive(model.sets)
        if not planned:
            model.check_trainable()

    def _positive(self, sets: Mapping[str, LabelledSet]) -> Tensor:
        """Return the weight of a present finding for each logit, [C] in fp64; 1 where none is given.

        Raises:
            ConfigError: if a set or a class is unknown, a set has one label an image, or a weight is not above 0.
            DataError: if they are computed from a file that cannot be read.
        """
        given = positive_weights(self._weigh, sets) if isinstance(self._weigh, str) else self._weigh or {}
        for name, weights in given.items():
            if name not in sets:
                raise ConfigError(f"objective.pos_weight: no set {name!r}; {nearest(str(name), list(sets))}")
            if sets[name].task != "multi_label":
                raise ConfigError(
                    f"objective.pos_weight: {name} has one label an image; weigh its rows in prepare (class_weights)"
                )
            for label, weight in weights.items():
                if label not in sets[name].classes:
                    raise ConfigError(
                        f"objective.pos_weight: {name} has no class {label!r}; "
                        f"{nearest(str(label), list(sets[name].classes))}"
                    )
                if not 0 < weight < math.inf:
                    raise ConfigError(f"objective.pos_weight: the weight of {label!r} must be a number above 0")
        each = [given.get(name, {}).get(label, 1.0) for name, one in sets.items() for label in one.classes]
        return torch.tensor(each, dtype=torch.float64)

    def sample_transform(self) -> SampleTransform:
        """Samples stay unchanged; samples with unusable labels are found before training."""
        return self._known

    def items(self, source: SampleSource, usable: np.ndarray | None, stage: Stage) -> LabelledImages:
        """Images with labels."""
        return LabelledImages(self._known, self.flip)

    def weight(self, batch: dict[str, Any]) -> float:
        """The sum of the images' weights."""
        return float(batch["weight"].double().sum())

    def forward(self, model: TaskModel, batch: dict[str, Any]) -> StepOutput:
        """The loss summed over images, and the number of images with right labels."""
        labels = batch["target"], batch["among"], batch["multi_label"]
        logits = model.logits(batch["pixels"])
        weight = batch["weight"].double()
        right: Tensor = labels_right(logits.detach(), *labels)
        return StepOutput(
            (label_losses(logits, *labels, self.pos_weight) * weight).sum(),
            weight.sum(),
            {"accuracy": right.double() @ weight},
        )
