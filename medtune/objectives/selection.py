"""Training of a selection model on pairs that people and a model prefer (BioMed-VITAL, Sec. 3.2)."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from medtune.data.items import Row
from medtune.data.sample import Sample
from medtune.data.source import SampleSource, place
from medtune.errors import ConfigError, DataError, ModelError
from medtune.losses.pairwise_ranking import RankingLoss, ranking_losses
from medtune.models.selector.model import SelectionModel
from medtune.models.selector.sides import SideTransform, side_of, stacked
from medtune.objectives.base import Objective, Stage, StepOutput

SOURCES = HUMAN, MODEL = "human", "model"
PREFERRED, REJECTED, SOURCE = "preferred", "rejected", "source"
Mixing = Literal["batch", "shuffled"]


def source_of(sample: Sample, where: str) -> str:
    """Return whose preference a pair is.

    Raises:
        DataError: The pair says nothing of it.
    """
    found = sample.meta.get(SOURCE)
    if found not in SOURCES:
        raise DataError(f"{where}: 'source' of a pair must be {HUMAN} or {MODEL}; run selector_pairs again.")
    return str(found)


@dataclass(frozen=True)
class PairItems:
    """Items of one pair, or of one pair of each source.

    With pairs of both sources, n_h of people and n_m of a model, an item holds its own pair and one of the other
    source, drawn from the item's generator. A human pair counts n_h / (n_h + n_m) and a model pair n_m / (n_h + n_m):
    an epoch's loss has the expectation that it has over the plain list of all pairs, and every batch holds both
    sources.

    Attributes:
        human_weight: w of Eq. 3; a human pair's loss has this factor.
        human: positions of the usable human pairs; empty if pairs are not mixed.
        model: positions of the usable model pairs; empty if pairs are not mixed.
    """

    human_weight: float
    human: tuple[int, ...] = ()
    model: tuple[int, ...] = ()

    def __call__(
        self, source: SampleSource, index: int, rng: random.Random, transform: SideTransform
    ) -> dict[str, Any]:
        """Make the item: ``pairs``, each with inputs, ``weight`` and ``share``."""
        sample = source[index]
        own = source_of(sample, place(source, sample))
        others = self.model if own == HUMAN else self.human
        total = len(self.human) + len(self.model)
        shares = {HUMAN: len(self.human) / total, MODEL: len(self.model) / total} if others else {own: 1.0}
        samples = [sample, source[rng.choice(others)]] if others else [sample]
        return {
            "id": sample.id,
            "pairs": [self._pair(source, one, transform, shares[str(one.meta[SOURCE])]) for one in samples],
        }

    def _pair(self, source: SampleSource, sample: Sample, transform: SideTransform, share: float) -> dict[str, Any]:
        opened: list[Any] = []

        def image(at: int) -> Any:
            if not opened:
                opened.extend(source.open_images(sample))
            return opened[min(at, len(opened) - 1)]

        where = place(source, sample)
        sides = [side_of(sample.meta.get(name), where) for name in (PREFERRED, REJECTED)]
        human = sample.meta[SOURCE] == HUMAN
        return {
            "inputs": [transform.inputs(side, partial(image, at)) for at, side in enumerate(sides)],
            "weight": self.human_weight if human else 1.0,
            "share": share * sample.weight,
            "human": human,
        }

    def measure(
        self, source: SampleSource, index: int, rng: random.Random, transform: SideTransform
    ) -> tuple[Row, ...]:
        """Return one row that counts as one token, whatever the texts.

        Raises:
            DataError: if the pair is none, an image is gone, or its features could not be made.
        """
        sample = source[index]
        where = place(source, sample)
        source_of(sample, where)
        sides = [side_of(sample.meta.get(name), where) for name in (PREFERRED, REJECTED)]
        if transform.looks:
            source.image_sizes(sample)
        else:
            for side in sides:
                transform.inputs(side, _no_image)
        return (Row(1, 1, 0),)

    def blank(self, item: dict[str, Any]) -> dict[str, Any]:
        """Return the same pairs with share 0."""
        return {**item, "pairs": [{**pair, "share": 0.0} for pair in item["pairs"]]}

    def collate(self, items: list[dict[str, Any]], transform: Any) -> dict[str, Any]:
        """Stack the sides: all preferred ones, then all rejected ones."""
        pairs = [pair for item in items for pair in item["pairs"]]
        return {
            "inputs": stacked([pair["inputs"][side] for side in (0, 1) for pair in pairs]),
            "weight": torch.tensor([pair["weight"] for pair in pairs], dtype=torch.float64),
            "share": torch.tensor([pair["share"] for pair in pairs], dtype=torch.float64),
            "human": torch.tensor([pair["human"] for pair in pairs]),
            "padding": torch.ones(len(items), 1, dtype=torch.bool),
        }


def _no_image() -> Any:
    raise DataError("these samples are read from stored features")


class Selection(Objective):
    """Trains a selection model by the pairwise ranking loss.

    The loss of a batch is the mean over its pairs of w times the pair's loss; w is 1 for a model's preferences.

    Args:
        loss: ``logistic`` on the difference of the scores; ``hinge``, as the official code; ``literal``, the paper's
            Eq. 1 and 3, which a constant large score minimises. See :func:`ranking_losses`.
        human_weight: w of Eq. 3, the weight of a human preference. Table 1 has its best value at 400, with 400 model
            preferences for each human one.
        mixing: ``batch`` puts both sources into every batch (:class:`PairItems`); ``shuffled`` draws from the list of
            all pairs, so that a batch may hold none of the rarer source.
        margin: of ``hinge``.

    Raises:
        ConfigError: for values out of range.
    """

    higher_is_better: Mapping[str, bool] = MappingProxyType({"accuracy": True})
    panels: Mapping[str, tuple[str, ...]] = MappingProxyType(
        {"Pairs in the right order": ("accuracy",), "Difference of the scores": ("difference",)}
    )

    def __init__(
        self,
        loss: RankingLoss = "logistic",
        human_weight: float = 1.0,
        mixing: Mixing = "batch",
        margin: float = 1.0,
    ) -> None:
        super().__init__()
        if loss not in ("logistic", "literal", "hinge") or mixing not in ("batch", "shuffled"):
            raise ConfigError(
                f"objective: loss {loss!r} must be logistic, literal or hinge, mixing {mixing!r} batch or shuffled"
            )
        if not 0 < human_weight < float("inf") or margin <= 0:
            raise ConfigError(f"objective: human_weight {human_weight} and margin {margin} must be above 0")
        self.loss, self.human_weight, self.mixing, self.margin = loss, float(human_weight), mixing, margin
        self.rows = 4 if mixing == "batch" else 2

    def bind(self, model: Any, transform: Any, seed: int) -> None:
        """Check that the transform agrees with the model.

        Raises:
            ConfigError: if the model or the transform has another type, or their settings differ.
            ModelError: if the model lacks weights.
        """
        if not isinstance(model, SelectionModel):
            raise ConfigError("objective: Selection trains a model of medtune.models.selector.builders")
        planned = all(parameter.is_meta for parameter in model.parameters())
        if planned:
            return
        if model.missing:
            raise ModelError(model.missing[0])
        if not hasattr(transform, "settings") or transform.settings() != model.transform.settings():
            raise ConfigError(
                "transform and model read different inputs; give both the same features, or the same CLIP model"
            )

    def items(self, source: SampleSource, usable: np.ndarray | None, stage: Stage) -> PairItems:
        """Pairs; mixed, if the objective says so and both sources are there."""
        if self.mixing == "shuffled" or usable is None:
            return PairItems(self.human_weight)
        found: dict[str, list[int]] = {HUMAN: [], MODEL: []}
        for index in usable.tolist():
            sample = source[index]
            found[source_of(sample, place(source, sample))].append(index)
        if not all(found.values()):
            return PairItems(self.human_weight)
        return PairItems(self.human_weight, tuple(found[HUMAN]), tuple(found[MODEL]))

    def weight(self, batch: dict[str, Any]) -> float:
        """Return the number of pairs; in a mixed item two pairs share one."""
        return float(batch["share"].sum())

    def forward(self, model: SelectionModel, batch: dict[str, Any]) -> StepOutput:
        """Return the loss summed over pairs, and how many pairs are in the right order; a tie counts half."""
        preferred, rejected = model.scores(batch["inputs"]).double().chunk(2)
        losses = ranking_losses(preferred, rejected, self.loss, self.margin)
        share = batch["share"]
        apart = (preferred - rejected).detach()
        right: Tensor = (apart > 0).double() + 0.5 * (apart == 0).double()
        return StepOutput(
            (losses * batch["weight"] * share).sum(),
            share.sum(),
            {"accuracy": right @ share, "difference": apart @ share},
        )


__all__ = ["PairItems", "Selection", "source_of"]
