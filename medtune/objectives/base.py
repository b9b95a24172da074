"""What the trainer knows of a training method.

An objective says how a sample becomes a prompt, which stages a run has, what is forwarded and which losses are summed.
It owns whatever the method must remember between steps; the trainer saves and restores it without looking inside.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor, nn

from medtune.data.items import Items, SampleItems, SampleTransform
from medtune.data.sample import Sample
from medtune.data.source import SampleSource
from medtune.losses.cross_entropy import IGNORE_INDEX
from medtune.objectives.companions import Companion, Companions


class StepOutput(NamedTuple):
    """Result of one micro-batch.

    ``loss_sum`` and ``weight`` are scalars, summed over micro-batches and processes before they are divided.
    ``metrics`` are further such sums over the same weight, of the same names on every process; they are logged beside
    the loss.
    """

    loss_sum: Tensor
    weight: Tensor
    metrics: dict[str, Tensor]


@dataclass(frozen=True)
class Stage:
    """A stretch of training with one set of trained parts and a fresh optimizer.

    ``steps`` wins over ``epochs``. ``learning_rates`` overrides the run's rates for the parts it names.
    """

    name: str
    trainable: tuple[str, ...]
    epochs: int = 1
    steps: int | None = None
    learning_rates: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class AuxiliaryEncoder:
    """A frozen model of a method's own that looks at pictures beside the model, one by one.

    Attributes:
        weights: folder of its weights.
        settings: whatever else decides its features.
        pixels: a picture -> [3, h, w]; runs in data workers, so it must be picklable.
        features: [b, 3, h, w] -> [b, n, d], each row by itself.
    """

    weights: str
    settings: dict[str, Any]
    pixels: Callable[[Image.Image], Tensor]
    features: Callable[[Tensor], Tensor]


def image_features(model: Any, batch: dict[str, Any]) -> Tensor:
    """Image features [b, s_e, d] of a batch: those it brings along, else the encoder's."""
    return batch["features"] if "features" in batch else model.encode(batch["vision"])


def keep_sample(sample: Sample, rng: random.Random) -> Sample:
    """The sample transform of a method that takes samples as they are."""
    return sample


class Objective(nn.Module):
    """A training method. Its own parameters (a proxy, a connector) are replicated over processes, in fp32.

    Attributes:
        rows: The most rows that the language model runs for one sample of a micro-batch.
        beside: The frozen models that the method named, once :meth:`attach` was called.
        higher_is_better: For metrics of ``StepOutput`` that a run may monitor: whether higher values are better.
    """

    rows: int = 1
    higher_is_better: Mapping[str, bool] = MappingProxyType({})
    beside: Companions = MappingProxyType({})

    def companions(self) -> dict[str, Companion]:
        """The frozen models that this method reads beside the trained one, by names of its own."""
        return {}

    def attach(self, companions: Companions) -> None:
        """Take the companions that the trainer built; called before :meth:`bind`.

        A mapping, so that they do not become modules of this one: they are in none of its parameters and checkpoints.
        """
        self.beside = dict(companions)

    def bind(self, model: Any, transform: Any, seed: int) -> None:
        """Meet the model and its transform; parameters of the method are made here."""

    def parts(self) -> dict[str, list[str]]:
        """Part name -> names of this objective's parameters."""
        return {}

    def stages(self, trainable: tuple[str, ...], epochs: int, steps: int | None) -> list[Stage]:
        """The stages of a run that trains the model's parts ``trainable``."""
        return [Stage("train", trainable, epochs, steps)]

    def sample_transform(self) -> SampleTransform:
        """What happens to a sample before it is tokenised; runs in data workers, so it must be picklable."""
        return keep_sample

    def items(self, source: SampleSource, usable: np.ndarray | None, stage: Stage) -> Items:
        """How a data set becomes items and batches in a stage; runs in data workers, so it must be picklable.

        Called for every stage before the first step: to measure samples, where their sizes are not remembered, and when
        it is known which can be used.

        Args:
            source: the samples.
            usable: positions of those that passed the check before training; None while they are being checked, when
                any of them may raise a DataError.
            stage: the stage that the items are for; nothing but its name may decide what they are.
        """
        return SampleItems(self.sample_transform())

    def auxiliary_encoder(self) -> AuxiliaryEncoder | None:
        """The method's own encoder, of whose features a cache is kept beside the model's; None where it has none."""
        return None

    def begin_stage(self, stage: Stage) -> None:
        """Told before the first step of a stage, and again when a run is resumed inside it."""

    def weight(self, batch: dict[str, Any]) -> float:
        """What the sum of a micro-batch's losses is divided by: ``StepOutput.weight``, before anything is forwarded.

        The trainer needs it before the forward pass, while the batch lies in host memory, so that it does not wait for
        the device. The default counts supervised tokens after the label shift.
        """
        return float((batch["labels"][:, 1:] != IGNORE_INDEX).sum())

    def forward(self, model: Any, batch: dict[str, Any]) -> StepOutput:
        """The losses of one micro-batch."""
        raise NotImplementedError(f"{type(self).__name__} must say what it forwards")

    def export(self, folder: Path) -> None:
        """Write into the run's folder what inference needs beside the model's weights; the first process calls."""

    def after_step(self) -> None:
        """Told after every optimizer step (never after a mere micro-batch)."""
