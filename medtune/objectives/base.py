"""The interface between the trainer and a training method.

An objective defines how a sample becomes a prompt, which stages a run has, what is forwarded and which losses are
summed. It owns the state that the method must keep between steps; the trainer saves and restores this state without
knowing what it means.
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
from medtune.losses.cross_entropy import supervised_weight
from medtune.objectives.companions import Companion, Companions


class StepOutput(NamedTuple):
    """Result of one micro-batch.

    ``loss_sum`` and ``weight`` are scalars. Both are summed over micro-batches and processes before the division.
    ``metrics`` are further sums, divided by the same weight and logged with the loss. Their names must be the same on
    every process.
    """

    loss_sum: Tensor
    weight: Tensor
    metrics: dict[str, Tensor]


@dataclass(frozen=True)
class Stage:
    """One stage of training, with one set of trained parts and a new optimizer.

    ``steps`` takes precedence over ``epochs``. ``learning_rates`` overrides the run's rates for the parts it names.
    """

    name: str
    trainable: tuple[str, ...]
    epochs: int = 1
    steps: int | None = None
    learning_rates: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class AuxiliaryEncoder:
    """A second, frozen image encoder that a method uses in addition to the model's encoder.

    Attributes:
        weights: folder of its weights.
        settings: everything else that its features depend on.
        pixels: an image -> [3, h, w]; runs in data workers, so it must be picklable.
        features: [b, 3, h, w] -> [b, n, d]; each row is computed independently of the others.
    """

    weights: str
    settings: dict[str, Any]
    pixels: Callable[[Image.Image], Tensor]
    features: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Precompute:
    """Outputs of the model in its state before the first step, which a method needs in every epoch.

    The items of the method must be the same in every epoch and stage (:class:`medtune.data.precomputed.FixedItems`).

    Attributes:
        folder: where they are kept.
        key: the config key that names the folder, for messages.
        what: the name of the outputs, e.g. ``reference log-probabilities``.
        item_bytes: bytes of one item's outputs.
        settings: everything that they depend on besides weights, data and transform.
        compute: (model, batch) -> name -> [b, ...], each row computed independently of the others; called by the
            model's ``compute``, without gradients and in evaluation mode.
    """

    folder: str
    key: str
    what: str
    item_bytes: int
    settings: Mapping[str, Any]
    compute: Callable[[Any, dict[str, Any]], dict[str, Tensor]]


def image_features(model: Any, batch: dict[str, Any]) -> Tensor:
    """Image features [b, s_e, d] of a batch: the precomputed ones if the batch has them, else the encoder's output."""
    return batch["features"] if "features" in batch else model.encode(batch["vision"])


def keep_sample(sample: Sample, rng: random.Random) -> Sample:
    """The sample transform of a method that takes samples as they are."""
    return sample


class Objective(nn.Module):
    """A training method. Its own parameters (a proxy, a connector) are replicated on all processes, in fp32.

    Attributes:
        rows: The largest number of rows that the language model runs for one sample of a micro-batch.
        beside: The frozen models that the method named, after :meth:`attach` was called.
        higher_is_better: For the metrics of ``StepOutput`` that a run may monitor: whether higher values are better.
        panels: How a report draws the metrics of ``StepOutput``: title of a panel -> names of the metrics in it. A
            metric that no panel names gets a panel of its own.
    """

    rows: int = 1
    higher_is_better: Mapping[str, bool] = MappingProxyType({})
    panels: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    beside: Companions = MappingProxyType({})

    def companions(self) -> dict[str, Companion]:
        """The frozen models that this method uses in addition to the trained one; the method chooses their names."""
        return {}

    def attach(self, companions: Companions) -> None:
        """Take the companions that the trainer built; called before :meth:`bind`.

        They are kept in a mapping so that they are not registered as submodules. They are therefore not among the
        objective's parameters, and not in its checkpoints.
        """
        self.beside = dict(companions)

    def bind(self, model: Any, transform: Any, seed: int) -> None:
        """Receive the model and its transform. The method creates its own parameters here."""

    def parts(self) -> dict[str, list[str]]:
        """Part name -> names of this objective's parameters."""
        return {}

    def stages(self, trainable: tuple[str, ...], epochs: int, steps: int | None) -> list[Stage]:
        """The stages of a run that trains the model's parts ``trainable``."""
        return [Stage("train", trainable, epochs, steps)]

    def sample_transform(self) -> SampleTransform:
        """The function that is applied to a sample before it is tokenised; runs in data workers, must be picklable."""
        return keep_sample

    def items(self, source: SampleSource, usable: np.ndarray | None, stage: Stage) -> Items:
        """How a data set becomes items and batches in a stage; runs in data workers, so it must be picklable.

        Called for every stage before the first step. The first calls are for measuring the samples, if their sizes are
        not yet recorded. The second calls come when it is known which samples can be used.

        Args:
            source: the samples.
            usable: positions of the samples that passed the check before training; None during that check, when each of
                them may raise a DataError.
            stage: the stage that the items are for; the items may depend on its name only.
        """
        return SampleItems(self.sample_transform())

    def auxiliary_encoder(self) -> AuxiliaryEncoder | None:
        """The auxiliary encoder, whose features are cached with the model's; None if the method has none."""
        return None

    def precompute(self) -> Precompute | None:
        """What the trainer computes once before training; batches then hold it under ``precomputed``. None: nothing."""
        return None

    def begin_stage(self, stage: Stage) -> None:
        """Called before the first step of a stage, and again when a run is resumed inside it."""

    def weight(self, batch: dict[str, Any]) -> float:
        """The divisor of the summed loss of a micro-batch: ``StepOutput.weight``, but known before the forward pass.

        The trainer reads it while the batch is in host memory, so that it does not wait for the device. The default
        counts supervised tokens after the label shift, each with the weight of its row if ``batch["weights"]`` has one.
        """
        return float(supervised_weight(batch["labels"], batch.get("weights")))

    def forward(self, model: Any, batch: dict[str, Any]) -> StepOutput:
        """The losses of one micro-batch."""
        raise NotImplementedError(f"{type(self).__name__} must say what it forwards")

    def export(self, folder: Path) -> None:
        """Write the files that inference needs in addition to the model's weights; called on the first process."""

    def after_step(self) -> None:
        """Called after every optimizer step (not after each micro-batch)."""
