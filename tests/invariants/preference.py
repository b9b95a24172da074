"""A method of one's own, as a user would write it: a pairwise preference loss with a frozen companion.

``-log sigmoid(beta * ((log p(chosen) - log p_ref(chosen)) - (log p(rejected) - log p_ref(rejected))))`` (DPO, Rafailov
et al. 2023, Eq. 7). The rejected answer stands in a sample's ``meta.rejected``; the reference is the run's own base.
"""

import random
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medtune.data.items import Row, SampleItems, measured_row
from medtune.data.sample import Message, Sample
from medtune.data.source import SampleSource, place
from medtune.errors import DataError
from medtune.losses.log_probs import sequence_log_probs
from medtune.objectives.base import Objective, Stage, StepOutput, image_features, keep_sample
from medtune.objectives.companions import Companion


@dataclass(frozen=True)
class PairItems:
    """Two conversations a sample, with one image: the chosen answer and the rejected one."""

    own: SampleItems = SampleItems(keep_sample)

    def rejected(self, source: SampleSource, sample: Sample) -> Sample:
        """The conversation that ends in the rejected answer."""
        answer = sample.meta.get("rejected")
        if not isinstance(answer, str) or not answer.strip():
            raise DataError(f"{place(source, sample)}: meta.rejected is empty; a pair needs two answers.")
        if answer == sample.messages[-1].content:
            raise DataError(f"{place(source, sample)}: both answers of the pair are the same; leave the pair out.")
        return replace(sample, messages=(*sample.messages[:-1], Message("assistant", answer)))

    def __call__(self, source: SampleSource, index: int, rng: random.Random, transform: Any) -> dict[str, Any]:
        """Both conversations, each with its tokens."""
        sample = source[index]
        images = source.open_images(sample)
        pair = [
            self.own.item(source, sample, one, images, transform) for one in (sample, self.rejected(source, sample))
        ]
        return {"id": sample.id, "chosen": pair[0], "rejected": pair[1], "weight": 1.0}

    def measure(self, source: SampleSource, index: int, rng: random.Random, transform: Any) -> tuple[Row, ...]:
        """The rows of both."""
        sample, sizes = source[index], source.image_sizes(source[index])
        return tuple(measured_row(source, one, sizes, transform) for one in (sample, self.rejected(source, sample)))

    def blank(self, item: dict[str, Any]) -> dict[str, Any]:
        """The pair without weight."""
        return {**item, "weight": 0.0}

    def collate(self, items: list[dict[str, Any]], transform: Any) -> dict[str, Any]:
        """A batch of chosen conversations, and their rejected ones beside it."""
        batch = transform.collate([item["chosen"] for item in items])
        rejected = transform.collate([item["rejected"] for item in items])
        text = {name: rejected[name] for name in ("tokens", "labels", "vision_mask")}
        return {**batch, "rejected": text, "pairs": torch.tensor([item["weight"] for item in items])}


class Preference(Objective):
    """DPO with a live reference."""

    rows = 2
    higher_is_better = MappingProxyType({"accuracies": True})

    def __init__(self, beta: float = 0.1, chunk_tokens: int = 64) -> None:
        super().__init__()
        self.beta, self.chunk_tokens = beta, chunk_tokens

    def companions(self) -> dict[str, Companion]:
        """The run's own model with its base weights."""
        return {"reference": Companion("the reference model")}

    def items(self, source: SampleSource, usable: np.ndarray | None, stage: Stage) -> PairItems:
        """Pairs."""
        return PairItems()

    def weight(self, batch: dict[str, Any]) -> float:
        """The number of pairs."""
        return float(batch["pairs"].sum())

    def log_probs(self, model: Any, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Summed log-probabilities of the chosen and of the rejected answers; images are encoded once."""
        features = image_features(model, batch)
        sums = []
        for text in (batch, batch["rejected"]):
            hidden = model.hidden(text["tokens"], features, vision_mask=text["vision_mask"])
            sums.append(sequence_log_probs(hidden, text["labels"], model.logits, self.chunk_tokens)[0])
        return sums[0], sums[1]

    def forward(self, model: Any, batch: dict[str, Any]) -> StepOutput:
        """The loss and the metrics that users of DPO know, summed over pairs."""
        with torch.no_grad():
            reference = self.beside["reference"].compute(self.log_probs, batch)
        policy = self.log_probs(model, batch)
        chosen, rejected = (self.beta * (ours - theirs) for ours, theirs in zip(policy, reference, strict=True))
        pairs = batch["pairs"].double()
        margin = chosen - rejected
        metrics = {"accuracies": (margin > 0).double() @ pairs, "margins": margin.detach() @ pairs}
        return StepOutput(-(F.logsigmoid(margin) @ pairs), pairs.sum(), metrics)
