"""Evaluate task routers: accuracy, confusion, calibration, stability under the order of labels, and what falls back.

tune run medtune/recipes/evaluate_router.py --config evaluate_router/flare 'routers={tfidf: runs/tfidf_router}'
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medtune.config import Component, config_hash, instantiate, recipe, to_shown
from medtune.data.folders import claim
from medtune.data.writing import write_whole
from medtune.evaluation.provenance import commit, hardware, versions
from medtune.reporting.routers import router_page
from medtune.routing.evaluation import SCHEMA, asked_of, evaluate_router
from medtune.routing.loading import load_router

WRITES = ("router_results.json", "router_report.html")


@dataclass
class EvaluateRouterConfig:
    """Keys of an evaluation of routers."""

    output: str = field(metadata={"help": "folder for router_results.json and router_report.html"})
    routers: dict[str, str] = field(metadata={"help": "name -> folder of a task_router or tfidf_router run"})
    dataset: Component = field(metadata={"help": "held-out questions with their tasks, and texts of no task"})
    others: list[Component] = field(
        default_factory=list, metadata={"help": "further texts: of other tasks, or of no task"}
    )
    thresholds: list[float] = field(
        default_factory=lambda: [0.3, 0.5, 0.7, 0.9], metadata={"help": "scores from which a text is routed"}
    )
    orders: int = field(default=20, metadata={"help": "orders of the labels that are tried"})
    seed: int = field(default=0, metadata={"help": "decides the orders"})

    def __post_init__(self) -> None:
        """Refuse values that no evaluation can have."""
        if not self.routers or self.orders < 1 or not all(0 <= threshold <= 1 for threshold in self.thresholds):
            raise ValueError("routers must name one, orders be at least 1, and thresholds lie from 0 to 1")


@recipe(EvaluateRouterConfig)
def main(config: EvaluateRouterConfig) -> None:
    """Ask every router the same texts, and write the numbers and a page."""
    routers = {name: load_router(folder) for name, folder in config.routers.items()}
    sources = [instantiate(component) for component in [config.dataset, *config.others]]
    results: dict[str, Any] = {}
    for name, router in routers.items():
        asked = asked_of(sources, router.labels)
        results[name] = evaluate_router(router, asked, sorted(config.thresholds), config.orders, config.seed)
    provenance = {
        "versions": versions(),
        "commit": commit(),
        "hardware": hardware(),
        "config": to_shown(config),
        "config_hash": config_hash(config, ignore=("output",)),
        "data": [source.fingerprint() for source in sources],
    }
    output = Path(config.output)
    claim(output, "evaluate_router", WRITES, lambda folder: SCHEMA in _text(folder / WRITES[0]))
    content = {"schema": SCHEMA, "routers": results, "provenance": provenance}
    write_whole(output / WRITES[0], json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    write_whole(output / WRITES[1], router_page(results, "Task routers"))
    for name, found in results.items():
        accuracy, ece = found["accuracy"], found["calibration"]["ece"]
        print(f"{name}: accuracy {accuracy['value']:.3f} (n {accuracy['n']}), calibration error {ece['value']:.3f}")
        for at in found["thresholds"]:
            shares = (at[key]["value"] for key in ("right_adapter", "no_task_falls_back", "unseen_falls_back"))
            right, none, unseen = ("-" if value is None else f"{value:.2f}" for value in shares)
            print(
                f"  threshold {at['threshold']:g}: right adapter {right}, falls back: no task {none}, unseen {unseen}"
            )
    print(f"report: {(output / WRITES[1]).resolve()}")


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""


if __name__ == "__main__":
    raise SystemExit(main())
