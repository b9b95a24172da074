"""A small fixed set of questions that the model answers during training, for metrics of generated answers."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from medtune.config import instantiate
from medtune.data.sample import Sample
from medtune.data.source import SampleSource
from medtune.errors import ConfigError
from medtune.evaluation.evaluation import evaluate, metric_rows
from medtune.evaluation.prediction import Prediction
from medtune.evaluation.protocols.base import Query, topic
from medtune.evaluation.protocols.registry import build_protocols, majority_of_use, plan_queries
from medtune.evaluation.result import Metric
from medtune.generation.engine.generator import Generator
from medtune.generation.requests import Request
from medtune.training.config import QuestionsConfig, TrainConfig
from medtune.training.runtime import Runtime


@dataclass(frozen=True)
class Answered:
    """The answers at one validation.

    Attributes:
        metrics: ``protocol/metric`` -> value with its interval, over all questions of the set.
        answers: id and text of the first few answers.
    """

    metrics: dict[str, Metric]
    answers: list[dict[str, str]]

    def row(self) -> dict[str, Any]:
        """The entries for ``metrics.jsonl``: a value for each metric, all intervals in one node, the answers."""
        values = {name: metric.value for name, metric in self.metrics.items() if metric.value is not None}
        intervals = {name: list(metric.interval) for name, metric in self.metrics.items() if metric.interval}
        return {**values, "intervals": intervals, "answers": self.answers}


class QuestionSet:
    """Asks the model the same questions at each validation.

    The questions are drawn once from the whole file, the same for every run, so that a file that is sorted by image
    gives questions on many images. Every process of a sharded run answers all of them, together with the others.

    Args:
        config: The run; ``questions`` must be set.
        transform: The model's transform.
        runtime: Device of the model.

    Attributes:
        protocols: Names of the protocols, with which metrics begin.

    Raises:
        ConfigError: If there is no question, or no such protocol.
        DataError: If a question cannot be asked by a protocol.
    """

    def __init__(self, config: TrainConfig, transform: Any, runtime: Runtime) -> None:
        assert config.questions is not None
        self.settings: QuestionsConfig = config.questions
        self.transform, self.device = transform, runtime.device
        self.source: SampleSource = runtime.on_all_ranks(lambda: instantiate(self.settings.source))
        if not len(self.source):
            raise ConfigError(f"questions.source: {self.source.name} holds no question")
        self.samples = [self.source[index] for index in chosen(len(self.source), self.settings.limit)]
        self.protocols = tuple(build_protocols(self.settings.protocols))
        self.queries: list[Query] = runtime.on_all_ranks(lambda: plan_queries(self.samples, self.settings.protocols))

    def ask(self, model: Any, dtype: torch.dtype) -> Answered:
        """Answer the questions greedily and score the answers; every process of a sharded run must call.

        Args:
            model: The model in training; its training mode is restored afterwards.
            dtype: Type of its weights.
        """
        generator = Generator(
            model,
            self.transform,
            batch_size=self.settings.batch_size,
            max_new_tokens=self.settings.max_new_tokens,
            device=self.device,
            dtype=dtype,
        )
        by_id = {query.id: query for query in self.queries}
        requests = (
            Request(query.id, query.sample, self.source, query.continuations, 0 if query.continuations else None)
            for query in self.queries
        )
        answers = {answer.id: answer for answer in model.compute(lambda _: list(generator(requests)))}
        predictions = [
            Prediction(
                id,
                query.task,
                query.prompt,
                answers[id].text,
                query.references,
                {**query.meta, **({"scores": list(answers[id].scores)} if answers[id].scores else {})},
            )
            for id, query in by_id.items()
        ]
        results = evaluate(
            self.samples,
            predictions,
            majority(self.samples) if majority_of_use(self.settings.protocols) else {},
            name="questions",
            protocols=self.settings.protocols,
            resamples=self.settings.resamples,
        ).results
        shown = [{"id": row.id, "answer": row.prediction} for row in predictions if row.prediction]
        return Answered(overall_metrics(results), shown[: self.settings.answers])


def chosen(count: int, limit: int) -> list[int]:
    """Positions of the questions: all, or ``limit`` of them drawn with a fixed seed, in the file's order."""
    if count <= limit:
        return list(range(count))
    return sorted(random.Random(0).sample(range(count), limit))


def majority(samples: Sequence[Sample]) -> dict[str, str]:
    """Most frequent right answer of each attribute in these questions; ties go to the alphabetically first one."""
    counts: dict[str, Counter[str]] = {}
    for sample in samples:
        about = topic(sample)
        counts.setdefault(about.attribute, Counter())[about.answer] += 1
    return {name: min(found, key=lambda value: (-found[value], value)) for name, found in counts.items()}


def overall_metrics(results: dict[str, Any]) -> dict[str, Metric]:
    """``protocol/metric`` -> metric, for the metrics over all questions with a known direction."""
    return {
        f"{row['protocol']}/{row['metric']}": Metric(
            row["value"],
            row["unit"],
            row["higher_is_better"],
            row["n"],
            None if row["low"] is None else (row["low"], row["high"]),
            row["definition"],
        )
        for row in metric_rows(results)
        if row["group"] == "overall" and row["higher_is_better"] is not None
    }
