"""Score a prediction file against its questions: results.json, numbers.csv and verdicts.csv in one folder."""

import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from medtune.config import config_hash, recipe, to_plain
from medtune.data.writing import file_sha256
from medtune.evaluation.baselines import read_majority
from medtune.evaluation.evaluation import evaluate, number_rows, to_csv, verdict_rows
from medtune.evaluation.prediction import read_predictions
from medtune.evaluation.protocols.registry import PROTOCOLS, majority_of_use
from medtune.evaluation.provenance import commit, hardware, versions
from medtune.evaluation.questions import read_questions
from medtune.reporting.summary import summary_table


@dataclass
class EvaluateConfig:
    """Keys of an evaluation."""

    predictions: str | list[str] = field(metadata={"help": "the prediction file, JSON lines, or several"})
    prepared_dir: str = field(metadata={"help": "folder that the prepare recipe wrote"})
    output: str = field(metadata={"help": "folder for the results"})
    name: str | None = field(default=None, metadata={"help": "the model's name in tables; else the output folder's"})
    split: str = field(default="test", metadata={"help": "which questions: <split>.jsonl in prepared_dir"})
    questions: str | None = field(default=None, metadata={"help": "a question file in place of the split's"})
    majority: str | None = field(default=None, metadata={"help": "a file in place of training_majority.json"})
    protocols: list[str] = field(default_factory=lambda: list(PROTOCOLS), metadata={"help": "what predict asked"})
    swapped: list[str] = field(default_factory=list, metadata={"help": "what predict asked on swapped images too"})
    limit: int | None = field(default=None, metadata={"help": "only the first N questions, as in predict"})
    seed: int = field(default=0, metadata={"help": "as in predict"})
    bootstrap_draws: int = field(default=1000, metadata={"help": "draws of each bootstrap interval"})
    on_missing: Literal["error", "wrong"] = field(default="error", metadata={"help": "a query without an answer"})
    on_extra: Literal["error", "ignore"] = field(default="error", metadata={"help": "an answer without a query"})

    def __post_init__(self) -> None:
        if self.bootstrap_draws < 1:
            raise ValueError(f"bootstrap_draws must be at least 1, not {self.bootstrap_draws}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be at least 1, not {self.limit}; leave it out to take every question")


@recipe(EvaluateConfig)
def main(config: EvaluateConfig) -> None:
    """Read questions and predictions, score, write the results, print a table."""
    prepared, output = Path(config.prepared_dir), Path(config.output)
    questions = Path(config.questions or prepared / f"{config.split}.jsonl")
    paths = [config.predictions] if isinstance(config.predictions, str) else config.predictions
    majority = Path(config.majority or prepared / "training_majority.json")
    evaluation = evaluate(
        read_questions(questions),
        [row for path in paths for row in read_predictions(path)],
        read_majority(majority) if majority.is_file() or majority_of_use(config.protocols) else {},
        name=config.name or output.resolve().name,
        protocols=config.protocols,
        swapped=config.swapped,
        limit=config.limit,
        seed=config.seed,
        draws=config.bootstrap_draws,
        on_missing=config.on_missing,
        on_extra=config.on_extra,
    )
    provenance = {
        "versions": versions(),
        "commit": commit(),
        "hardware": hardware(),
        "seed": config.seed,
        "config": to_plain(config),
        "config_hash": config_hash(config, ignore=("name", "output", "predictions")),
        "sha256": {"questions": file_sha256(questions), "predictions": [file_sha256(Path(path)) for path in paths]},
    }
    results = {**evaluation.results, "provenance": provenance}
    output.mkdir(parents=True, exist_ok=True)
    _write(output / "numbers.csv", to_csv(number_rows(results)))
    _write(output / "verdicts.csv", to_csv(verdict_rows(evaluation.verdicts)))
    _write(output / "results.json", json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    print(summary_table([results]))
    print(f"results: {output / 'results.json'}")


def _write(path: Path, text: str) -> None:
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)


if __name__ == "__main__":
    sys.exit(main())
