"""Results of fixed questions and answers, as the evaluator wrote them before protocols scored themselves.

``python -m tests.evaluation.golden`` writes ``golden.json`` again; do so only where a number changes on purpose.
"""

import json
import random
from pathlib import Path
from typing import Any

from medtune.data.labels import label_text
from medtune.data.sample import Sample
from medtune.evaluation.evaluation import evaluate, metric_rows, to_csv, verdict_rows
from medtune.evaluation.prediction import Prediction
from medtune.evaluation.protocols.base import Query
from medtune.evaluation.protocols.registry import PROTOCOLS, plan_queries
from tests.evaluation.classes import MAJORITY, answered, class_questions
from tests.evaluation.ranked import likely
from tests.evaluation.tools import question

PATH = Path(__file__).with_name("golden.json")
SIZES = {"cell size": ["big", "small"], "granule type": ["coarse", "round", "small"]}


def cases() -> dict[str, dict[str, Any]]:
    """Name to results, verdicts and numbers of each case."""
    swapped = ["open", "multiple_choice", "letter_likelihood"]
    sets = class_questions()
    ranked = {"protocols": ["classification", "response_likelihood"], "swapped": ["response_likelihood"]}
    both = {"protocols": ["classification"], "swapped": ["classification"]}
    return {
        "attributes": _case(_cells(), _say, {"cell size": "big", "granule type": "small"}, swapped=swapped),
        "some": _case(_cells(), _say, {"cell size": "big", "granule type": "small"}, protocols=["yes_no", "open"]),
        "classification": _case(sets, _classify, MAJORITY, **both),
        "ranking": _case(sets, _rank, MAJORITY, **ranked),
    }


def _case(samples: list[Sample], say: Any, majority: dict[str, str], **asked: list[str]) -> dict[str, Any]:
    rng = random.Random(7)
    rows = [say(query, rng) for query in plan_queries(samples, asked.get("protocols", PROTOCOLS),
                                                      swapped=asked.get("swapped", []), seed=3)]  # fmt: skip
    done = evaluate(samples, rows, majority, name="golden", seed=3, resamples=40, **asked)
    return {
        "results": done.results,
        "verdicts": to_csv(verdict_rows(done.verdicts)).splitlines(),
        "numbers": [row["metric"] for row in metric_rows(done.results)],
    }


def _cells() -> list[Sample]:
    rng = random.Random(1)
    return [
        question(f"{place}-{name}", name, options, rng.choice(options), f"{place}.png")
        for place in range(9)
        for name, options in SIZES.items()
    ]


def _say(query: Query, rng: random.Random) -> Prediction:
    meta = query.meta
    value = meta["answer"] if rng.random() < 0.6 else rng.choice(meta["options"])
    scores = [float(option == value) - 2.0 for option in meta["options"]]
    texts = {
        "open": [f"The {meta['attribute']} is {value}.", "big cell size, coarse granule type", "no idea"],
        "yes_no": ["Yes." if value == meta.get("asked_value") else "No.", "maybe"],
        "multiple_choice": [f"The correct answer is {'ABC'[meta['options'].index(value)]}.", value],
        "description": ["This image shows a cell that is round.", "big cell size, coarse granule type"],
        "letter_likelihood": [""],
    }
    text = rng.choice([texts[query.task][0], *texts[query.task]])
    held = {**meta, "scores": scores} if query.continuations else dict(meta)
    return Prediction(query.id, query.task, query.prompt, text, query.references, held)


def _classify(query: Query, rng: random.Random) -> Prediction:
    guess = label_text(rng.sample(query.meta["classes"], 1))
    text = rng.choice([query.meta["answer"], query.meta["answer"], guess, "mass; cyst"])
    return answered(query, text, [rng.random() for _ in query.meta["classes"]])


def _rank(query: Query, rng: random.Random) -> Prediction:
    if query.task == "classification":
        return answered(query)
    return likely(query, 3 * min(-0.01, -1 - query.meta["swapped"] + rng.gauss(0, 0.5)))


if __name__ == "__main__":
    PATH.write_text(json.dumps(cases(), indent=1) + "\n")
