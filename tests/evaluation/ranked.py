"""Likelihoods of right responses made up by hand, and a run's folder of them."""

import json
import random
from pathlib import Path
from typing import Any

from medtune.data.labels import Target
from medtune.data.sample import Sample
from medtune.evaluation.evaluation import evaluate, metric_rows, to_csv, verdict_rows
from medtune.evaluation.prediction import Prediction, write_predictions
from medtune.evaluation.protocols.base import Query, Verdict
from medtune.evaluation.protocols.registry import plan_queries
from medtune.evaluation.protocols.response_likelihood import ResponseLikelihood
from tests.evaluation.classes import BREAST, MAJORITY, RETINA, answered, class_question

NAME = ResponseLikelihood.name
BOTH = {"protocols": ["classification", NAME], "swapped": [NAME]}


def many() -> list[Sample]:
    """Forty images of breast, nine in ten of one class, and thirty of retina."""
    rng = random.Random(0)
    breast = [class_question(Target("breast", "multi_class", BREAST, (int(n % 10 > 0),)), n) for n in range(40)]
    return breast + [class_question(Target("retina", "ordinal", RETINA, (rng.randrange(3),)), n) for n in range(30)]


def likely(query: Query, score: float, tokens: int = 3) -> Prediction:
    meta = {**query.meta, "scores": [score], "score_tokens": [tokens]}
    return Prediction(query.id, query.task, query.prompt, "", query.references, meta)


def answers(gap: float, seed: int = 0, **asked: list[str]) -> list[Prediction]:
    """A model for which the right response is likelier by ``gap`` nats a token under its own image, with noise of 1."""
    rng = random.Random(seed)
    return [
        likely(query, 3 * min(-0.01, -2 - gap * query.meta["swapped"] + rng.gauss(0, 1)))
        if query.task == NAME
        else answered(query)
        for query in plan_queries(many(), **asked)
    ]


def save_run(folder: Path, results: dict[str, Any], verdicts: list[Verdict], rows: list[Prediction]) -> Path:
    """Write what the evaluate recipe writes."""
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "verdicts.csv").write_text(to_csv(verdict_rows(verdicts)))
    (folder / "numbers.csv").write_text(to_csv(metric_rows(results)))
    write_predictions(folder / "predictions.jsonl", rows)
    return folder


def write_run(folder: Path, name: str, gap: float, asked: dict[str, list[str]] = BOTH) -> Path:
    rows = answers(gap, **asked)
    done = evaluate(many(), rows, MAJORITY, name=name, resamples=30, **asked)
    return save_run(folder, done.results, done.verdicts, rows)
