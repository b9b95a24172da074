"""From a question file and a prediction file to a tree of results."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from medtune.data.sample import Sample
from medtune.evaluation.matching import match_predictions
from medtune.evaluation.measures import MEASURE
from medtune.evaluation.prediction import Prediction
from medtune.evaluation.protocols.base import EvaluationProtocol, Verdict, Vocabulary
from medtune.evaluation.protocols.registry import PROTOCOLS, REGISTRY, build_protocols, plan_queries
from medtune.evaluation.result import Metric, is_metric
from medtune.evaluation.retention import COMPONENTS, retention
from medtune.evaluation.robustness import chosen_probes, robustness_card, robustness_rows

SCHEMA = "medtune-results-1"


@dataclass(frozen=True)
class Evaluation:
    """Results of one model.

    Args:
        results: JSON-ready tree ``{schema, name, protocols, retention, counts, vocabulary}``, ``display`` if a
            protocol is not a packaged one, and ``side_by_side`` with the protocols whose answers are shown whole.
        verdicts: The verdict on each answer to a question as it is, or on a swapped image.
        probed: A row for each answer to a probe of the robustness card.
    """

    results: dict[str, Any]
    verdicts: list[Verdict]
    probed: list[dict[str, Any]] = field(default_factory=list)


def evaluate(
    samples: Sequence[Sample],
    predictions: Sequence[Prediction],
    majority: dict[str, str],
    *,
    name: str,
    protocols: Sequence[str] = PROTOCOLS,
    swapped: Sequence[str] = (),
    limit: int | None = None,
    seed: int = 0,
    resamples: int = 1000,
    on_missing: Literal["error", "wrong"] = "error",
    on_extra: Literal["error", "ignore"] = "error",
    robustness: bool | Sequence[str] = (),
) -> Evaluation:
    """Score one model's predictions on a question file.

    Args:
        samples: The questions.
        predictions: The answers.
        majority: Most frequent value of each attribute in the training split.
        name: Name of the model in tables.
        protocols: Protocols that were asked, by name or dotted path.
        swapped: Protocols that were also asked on swapped images.
        limit: Number of questions from the start, the same as in predict; None takes all.
        seed: Seed of predict (yes/no choices, swap); it also seeds the bootstrap.
        resamples: Number of bootstrap resamples.
        on_missing: See :func:`medtune.evaluation.matching.match_predictions`.
        on_extra: See :func:`medtune.evaluation.matching.match_predictions`.
        robustness: Probes of the robustness card that were asked; True is all.

    Raises:
        DataError: Questions and predictions do not match.
    """
    asked = build_protocols(protocols, seed)
    vocabulary = _vocabulary(samples, majority, list(asked.values()))
    samples = samples[:limit]
    queries = plan_queries(samples, protocols, swapped=swapped, seed=seed, robustness=robustness)
    keys = {task: protocol.answer_keys for task, protocol in asked.items()}
    rows, counts = match_predictions(queries, predictions, answer_keys=keys, on_missing=on_missing, on_extra=on_extra)
    judged = [asked[row.task].judge(row, vocabulary) for row in rows]
    verdicts = [verdict for verdict in judged if not verdict.probe]  # answers to changed questions count for no score
    scored: dict[str, Any] = {}
    facts: dict[str, Any] = {}
    for task, protocol in asked.items():
        of_task = [verdict for verdict in verdicts if verdict.task == task]
        numbers = protocol.score(of_task, vocabulary, resamples=resamples, seed=seed)
        if numbers is not None:
            scored[task] = numbers
        facts |= protocol.facts(of_task)
    others = {task: protocol.display.to_dict() for task, protocol in asked.items() if task not in REGISTRY}
    beside = [task for task, protocol in asked.items() if protocol.display.side_by_side]
    components = COMPONENTS | {task: protocol.retention for task, protocol in asked.items() if protocol.retention}
    results = {
        "schema": SCHEMA,
        "name": name,
        "protocols": scored,
        "retention": retention(verdicts, resamples=resamples, seed=seed, components=components),
        "counts": {"questions": len(samples), "images": len({sample.images for sample in samples}), **counts},
        "vocabulary": {"attributes": list(vocabulary.attributes), "majority": vocabulary.majority, **facts},
        **({"display": others} if others else {}),
        **({"side_by_side": beside} if beside else {}),
    }
    probes = chosen_probes(robustness)
    if probes:
        results["robustness"] = robustness_card(judged, probes, asked, resamples=resamples, seed=seed)
    return Evaluation(plain(results), verdicts, robustness_rows(judged) if probes else [])


def _vocabulary(samples: Sequence[Sample], majority: dict[str, str], asked: Sequence[EvaluationProtocol]) -> Vocabulary:
    """Collect attributes and values of the questions, using the ``topic`` of each protocol."""
    needed = any(protocol.majority == "required" for protocol in asked)
    return Vocabulary.of(samples, majority, needed, list(dict.fromkeys(type(protocol).topic for protocol in asked)))


def plain(node: Any) -> Any:
    """Convert a tree with metrics to plain JSON values."""
    if isinstance(node, Metric):
        return node.to_dict()
    if isinstance(node, dict):
        return {key: plain(value) for key, value in node.items()}
    return [plain(item) for item in node] if isinstance(node, list | tuple) else node


def metric_rows(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Flatten a results tree into table rows, one per number: run, place in the tree, value, interval, n, unit."""
    rows: list[dict[str, Any]] = []

    def walk(node: Any, path: tuple[str, ...]) -> None:
        if is_metric(node):
            low, high = node["interval"] or (None, None)
            protocol, group, attribute = _place(path)
            rows.append(
                {
                    "run": results["name"],
                    "protocol": protocol,
                    "group": group,
                    "attribute": attribute,
                    "metric": path[-1],
                    "value": node["value"],
                    "low": low,
                    "high": high,
                    "n": node["n"],
                    "unit": node["unit"],
                    "higher_is_better": node["higher_is_better"],
                    "definition": node["definition"],
                    "caution": node.get("caution", ""),
                }
            )
        elif isinstance(node, dict):
            for key, value in node.items():
                walk(value, (*path, key))

    walk({key: results[key] for key in ("protocols", "retention", "robustness") if key in results}, ())
    return rows


def _place(path: tuple[str, ...]) -> tuple[str, str, str]:
    if path[0] == "retention":
        return "", "retention", ""
    if path[0] == "robustness":
        return path[1], f"robustness, {path[2]}", ""
    return path[1], path[2], path[3] if len(path) > 4 else ""


def to_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Return table rows as CSV text; empty if there are no rows."""
    if not rows:
        return ""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def verdict_rows(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """Flatten verdicts into table rows: ids, gold and the value read, never an answer's text.

    A likelihood is not an answer and has no row. Each per-sample number has a column ``measure:<name>``, which is empty
    for answers without it. If no verdict has the number, there is no column.
    """
    tabulated = [verdict for verdict in verdicts if verdict.tabulated]
    names = dict.fromkeys(name for verdict in tabulated for name in verdict.measures)
    return [
        {
            "id": verdict.id,
            "task": verdict.task,
            "sample_id": verdict.sample_id,
            "attribute": verdict.attribute,
            "images": "+".join(verdict.images),
            "swapped": int(verdict.swapped),
            "gold": verdict.gold,
            "predicted": "" if verdict.predicted is None else verdict.predicted,
            "read": int(verdict.predicted is not None),
            "correct": int(verdict.correct),
            "in_format": int(verdict.in_format),
            **{f"{MEASURE}{name}": verdict.measures.get(name, "") for name in names},
        }
        for verdict in tabulated
    ]
