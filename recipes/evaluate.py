"""Score a prediction file against its questions; writes results.json, numbers.csv and verdicts.csv to one folder."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from medtune.config import config_hash, recipe, to_shown
from medtune.data.folders import claim
from medtune.data.writing import file_sha256, write_whole
from medtune.errors import DataError
from medtune.evaluation.asked import Asked, what_was_asked
from medtune.evaluation.baselines import read_majority
from medtune.evaluation.evaluation import SCHEMA, evaluate, metric_rows, to_csv, verdict_rows
from medtune.evaluation.prediction import Prediction, read_predictions
from medtune.evaluation.protocols.registry import majority_of_use, nothing_to_score
from medtune.evaluation.provenance import commit, hardware, versions
from medtune.evaluation.questions import read_questions
from medtune.reporting.summary import summary_table

WRITES = ("results.json", "numbers.csv", "verdicts.csv", "robustness.csv")


@dataclass
class EvaluateConfig:
    """Keys of an evaluation."""

    predictions: str | list[str] = field(metadata={"help": "one prediction file (JSON Lines) or a list of files"})
    prepared_dir: str = field(metadata={"help": "folder that the prepare recipe wrote"})
    output: str = field(metadata={"help": "folder for the results"})
    name: str | None = field(
        default=None, metadata={"help": "the model's name in tables; null: the output folder's name"}
    )
    split: str = field(default="test", metadata={"help": "which questions: <split>.jsonl in prepared_dir"})
    questions: str | None = field(default=None, metadata={"help": "a question file that replaces the split's"})
    where: dict[str, str | list[str]] | None = field(
        default=None, metadata={"help": "values of meta by which questions are chosen, as in predict's questions.where"}
    )
    majority: str | None = field(default=None, metadata={"help": "a file that replaces training_majority.json"})
    protocols: list[str] | None = field(
        default=None, metadata={"help": "the protocols of predict; null: from predict's record next to the predictions"}
    )
    swapped: list[str] | None = field(
        default=None, metadata={"help": "protocols that predict also ran on swapped images; null: from the record"}
    )
    limit: int | None = field(default=None, metadata={"help": "only the first N questions; null: from the record"})
    seed: int | None = field(
        default=None, metadata={"help": "seed of predict and of the bootstrap; null: from the record"}
    )
    bootstrap_draws: int = field(default=1000, metadata={"help": "resamples of each bootstrap interval"})
    robustness: list[str] | None = field(
        default=None, metadata={"help": "probes of the robustness card that predict asked; null: from the record"}
    )
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
    files = [(Path(path), read_predictions(path)) for path in paths]
    config, asked = settled(config, files)
    if nothing_to_score(asked.protocols or []):
        raise DataError(
            f"there is nothing to score: {' and '.join(map(str, paths))} answers questions without a right answer "
            f"({', '.join(asked.protocols or [])}). Read the answers in predictions.csv; to score answers, ask "
            "questions with an 'answer', for example with protocols=[vqa]."
        )
    majority = Path(config.majority or prepared / "training_majority.json")
    evaluation = evaluate(
        read_questions(questions, config.where),
        [row for _, rows in files for row in rows],
        read_majority(majority) if majority.is_file() or majority_of_use(asked.protocols or []) else {},
        name=config.name or output.resolve().name,
        protocols=asked.protocols or [],
        swapped=asked.swapped or [],
        limit=asked.limit,
        seed=asked.seed or 0,
        resamples=config.bootstrap_draws,
        on_missing=config.on_missing,
        on_extra=config.on_extra,
        robustness=asked.robustness or (),
    )
    provenance = {
        "versions": versions(),
        "commit": commit(),
        "hardware": hardware(),
        "seed": asked.seed,
        "config": to_shown(config),
        "config_hash": config_hash(config, ignore=("name", "output", "predictions")),
        "leakage": leakage_of(prepared),
        "sha256": {"questions": file_sha256(questions), "predictions": [file_sha256(Path(path)) for path in paths]},
    }
    results = {**evaluation.results, "provenance": provenance}
    claim(output, "evaluate", WRITES, _is_evaluation)
    write_whole(output / "numbers.csv", to_csv(metric_rows(results)))
    write_whole(output / "verdicts.csv", to_csv(verdict_rows(evaluation.verdicts)))
    if evaluation.probed:
        write_whole(output / "robustness.csv", to_csv(evaluation.probed))
    write_whole(output / "results.json", json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    print(summary_table([results]))
    print(f"results: {output / 'results.json'}")


def leakage_of(prepared: Path) -> dict[str, Any] | None:
    """Return what the manifest of the prepared data says about leakage between the splits; None if it says nothing."""
    try:
        known = json.loads((prepared / "manifest.json").read_text(encoding="utf-8")).get("leakage")
    except (OSError, ValueError, AttributeError):
        return None
    return known if isinstance(known, dict) else None


def settled(config: EvaluateConfig, files: Sequence[tuple[Path, Sequence[Prediction]]]) -> tuple[EvaluateConfig, Asked]:
    """Return what was asked, and the config completed with it, so that the results always contain it."""
    written = Asked(config.protocols, config.swapped, config.limit, config.seed, config.robustness)
    asked = what_was_asked(written, files, on_missing=config.on_missing, on_extra=config.on_extra)
    return dataclasses.replace(config, **vars(asked)), asked


def _is_evaluation(folder: Path) -> bool:
    """Return whether a folder without a record is the folder of an evaluation."""
    try:
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(results, dict) and results.get("schema") == SCHEMA


if __name__ == "__main__":
    sys.exit(main())
