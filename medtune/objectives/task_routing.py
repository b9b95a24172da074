"""Training of a task router on questions and their tasks (ME-VLIP, section 2.3)."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch

from medtune.data.items import Row
from medtune.data.sample import Sample
from medtune.data.source import SampleSource, place
from medtune.datasets.task_questions.rows import NO_TASK
from medtune.errors import ConfigError, DataError, ModelError
from medtune.losses.task_scores import focal_losses, soft_cross_entropy
from medtune.models.task_router.model import TaskRouterModel
from medtune.models.task_router.transform import QuestionTransform, question_of
from medtune.objectives.base import Objective, Stage, StepOutput


def task_of(sample: Sample, labels: tuple[str, ...], where: str) -> int | None:
    """The number of a sample's task among the labels; None for a text of no task.

    Raises:
        DataError: if ``meta["task"]`` is missing, or the router has no such label.
    """
    task = sample.meta.get("task")
    if task == NO_TASK:
        return None
    if not isinstance(task, str) or task not in labels:
        raise DataError(
            f"{where}: meta needs a 'task' that the router has as label ({', '.join(labels)}), or {NO_TASK!r}; correct "
            "the row, or add the label"
        )
    return labels.index(task)


@dataclass(frozen=True)
class RoutedQuestions:
    """Items of one question, with the labels in an order of its own.

    Attributes:
        labels: names of the tasks.
        shuffle: whether each item names them in another order; otherwise it is that of ``labels``.
    """

    labels: tuple[str, ...]
    shuffle: bool

    def __call__(
        self, source: SampleSource, index: int, rng: random.Random, transform: QuestionTransform
    ) -> dict[str, Any]:
        """Make the item: ``tokens``, and ``target`` [labels] in the order of its prompt; all 0 for no task."""
        sample = source[index]
        task = task_of(sample, self.labels, place(source, sample))
        order = list(range(len(self.labels)))
        if self.shuffle:
            rng.shuffle(order)
        return {
            "id": sample.id,
            "tokens": transform.tokens(question_of(sample), order),
            "target": [float(number == task) for number in order],
            "weight": sample.weight,
        }

    def measure(
        self, source: SampleSource, index: int, rng: random.Random, transform: QuestionTransform
    ) -> tuple[Row, ...]:
        """One row of labels and question; its length does not depend on the order of the labels.

        Raises:
            DataError: if the sample has no question, no known task, or is too long.
        """
        sample = source[index]
        where = place(source, sample)
        task_of(sample, self.labels, where)
        tokens, supervised = transform.token_counts(sample)
        if tokens > transform.max_seq_len:
            raise DataError(
                f"{where}: {tokens} tokens, labels included, and the limit is {transform.max_seq_len}; shorten the "
                "question or raise max_seq_len"
            )
        return (Row(tokens, supervised, 0),)

    def blank(self, item: dict[str, Any]) -> dict[str, Any]:
        """The same question with weight 0."""
        return {**item, "weight": 0.0}

    def collate(self, items: list[dict[str, Any]], transform: QuestionTransform) -> dict[str, Any]:
        """Pad and stack the items."""
        return {
            **transform.collate_tokens([item["tokens"] for item in items]),
            "target": torch.tensor([item["target"] for item in items], dtype=torch.float64),
            "weight": torch.tensor([item["weight"] for item in items], dtype=torch.float64),
        }


class TaskRouting(Objective):
    """Trains a classifier that scores the label of each task, from questions and texts of no task.

    A text of no task must get no high score, otherwise a threshold on the score is without effect. With ``focal`` all
    its targets are 0, with ``cross_entropy`` they are 1/K for each of K labels. In both cases the score of inference is
    the softmax over the labels.

    Args:
        loss: ``cross_entropy`` over the labels, or ``focal``, each label on its own (mean over the labels).
        alpha: of the focal loss: weight of positives, 1 - alpha that of negatives; -1 switches it off. ME-VLIP's 1
            gives negatives no weight: such a run learns to score every label high. See docs/task_router.md.
        gamma: of the focal loss.
        shuffle_labels: name the labels in another order in each epoch, drawn from the run's seed; with a fixed order
            the classifier learns places in place of names.
        threshold: for the metric ``routed_right``: the score from which a text counts as routed.

    Raises:
        ConfigError: for values out of range.
    """

    higher_is_better: Mapping[str, bool] = MappingProxyType({"routed_right": True})

    def __init__(
        self,
        loss: Literal["cross_entropy", "focal"] = "cross_entropy",
        alpha: float = -1.0,
        gamma: float = 1.0,
        shuffle_labels: bool = True,
        threshold: float = 0.5,
    ) -> None:
        super().__init__()
        if alpha > 1 or gamma < 0 or not 0 <= threshold <= 1:
            raise ConfigError(
                f"objective: alpha {alpha} must be at most 1 (negative: off), gamma {gamma} at least 0, threshold "
                f"{threshold} from 0 to 1"
            )
        self.loss, self.alpha, self.gamma = loss, alpha, gamma
        self.shuffle_labels, self.threshold = shuffle_labels, threshold

    def bind(self, model: Any, transform: Any, seed: int) -> None:
        """Check that the transform agrees with the model.

        Raises:
            ConfigError: if the model or the transform has another type, or their labels or tokenizers differ.
            ModelError: if the model lacks weights.
        """
        if not isinstance(model, TaskRouterModel):
            raise ConfigError("objective: TaskRouting trains a model of medtune.models.task_router.builders")
        planned = all(parameter.is_meta for parameter in model.parameters())
        if not planned and model.missing:
            raise ModelError(model.missing[0])
        self._labels = model.labels
        if not isinstance(transform, QuestionTransform):
            if planned:  # the plan has said that the tokenizer is missing
                return
            raise ConfigError("transform: TaskRouting needs medtune.models.task_router.transform.QuestionTransform")
        same_tokens = transform.tokenizer.vocabulary() == model.transform.tokenizer.vocabulary()
        if transform.settings() != model.transform.settings() or not same_tokens:
            raise ConfigError(
                "transform and model have different labels, max_seq_len or tokenizers; give both the same (the "
                "packaged configs take the transform's from the model)"
            )

    def items(self, source: SampleSource, usable: np.ndarray | None, stage: Stage) -> RoutedQuestions:
        """Questions with their labels."""
        return RoutedQuestions(self._labels, self.shuffle_labels)

    def weight(self, batch: dict[str, Any]) -> float:
        """The sum of the questions' weights."""
        return float(batch["weight"].sum())

    def forward(self, model: TaskRouterModel, batch: dict[str, Any]) -> StepOutput:
        """The loss summed over questions, and how many of them a router would send to the right place."""
        logits = model.logits(batch["tokens"], batch["padding"])
        target, weight = batch["target"], batch["weight"]
        some = target.sum(dim=1) > 0
        if self.loss == "focal":
            losses = focal_losses(logits, target, self.alpha, self.gamma).mean(dim=1)
        else:
            losses = soft_cross_entropy(logits, torch.where(some[:, None], target, 1.0 / target.shape[1]))
        score, best = logits.detach().double().softmax(dim=1).max(dim=1)
        right = target.gather(1, best[:, None]).squeeze(1).bool() & (score >= self.threshold)
        right = torch.where(some, right, score < self.threshold)
        return StepOutput((losses * weight).sum(), weight.sum(), {"routed_right": right.double() @ weight})
