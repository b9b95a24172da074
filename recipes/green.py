"""Let a served GREEN model count the errors of generated reports, and write the counts into the prediction file.

The written file replaces predictions.jsonl for the evaluate recipe. Nothing is asked twice: every reply is kept in a
cache, and a killed run continues when the same command is run again.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from medtune.clients.budget import Budget
from medtune.clients.served import RecordedClient, ServedModel, estimate_lines
from medtune.config import recipe
from medtune.data.folders import claim
from medtune.data.writing import file_sha256, json_bytes, write_files
from medtune.errors import ConfigError, DataError
from medtune.evaluation.prediction import read_predictions, write_predictions
from medtune.evaluation.provenance import commit, versions
from medtune.evaluation.reports.grading import Grading
from medtune.evaluation.reports.green import PACKAGED, read_prompt
from medtune.judges.judging import run_id

WRITES = ("graded.jsonl", "graded.meta.json", "green.json", "run.json", "replies.jsonl", "replies.jsonl.lock")
"""All files that a run writes into its folder."""


@dataclass
class GreenConfig:
    """Every key of a run of GREEN's model."""

    predictions: str = field(metadata={"help": "prediction file with generated reports"})
    output_dir: str = field(metadata={"help": "folder of graded.jsonl, green.json and the replies"})
    server: ServedModel | None = field(default=None, metadata={"help": "the served model that counts errors"})
    prompt: str = field(
        default=PACKAGED, metadata={"help": "green-v1, or a .txt file with {reference} and {candidate}"}
    )
    max_words: int = field(default=300, metadata={"help": "words of each report that are shown (official: 300)"})
    max_tokens: int | None = field(default=1024, metadata={"help": "maximum tokens of a reply; null: the server's"})
    budget: Budget = field(default_factory=Budget, metadata={"help": "max_cost, max_tokens, max_requests; null: none"})
    cache: str | None = field(
        default=None, metadata={"help": "file of the replies; null: replies.jsonl in output_dir; runs may share one"}
    )
    stop_after_unread: int | None = field(
        default=25, metadata={"help": "stop if none of the first N replies can be read; null never stops"}
    )
    dry_run: bool = field(default=False, metadata={"help": "print one request and the estimate; ask nothing"})

    def __post_init__(self) -> None:
        """Refuse invalid sizes."""
        for name in ("max_words", "max_tokens", "stop_after_unread"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


@recipe(GreenConfig)
def main(config: GreenConfig) -> int:
    """Grade the reports and write the counts."""
    if config.server is None:
        raise ConfigError("GREEN asks a served model; set server.base_url and server.model")
    source = Path(config.predictions)
    grading = Grading(read_predictions(source), read_prompt(config.prompt, config.max_words), config.max_tokens)
    if not grading.reports:
        raise DataError(f"{source} holds no generated report; ask for reports with protocols=[report_generation]")
    if config.dry_run:
        return _dry_run(config, grading, config.server)
    folder = Path(config.output_dir)
    claim(folder, "green", WRITES, lambda path: (path / "green.json").is_file())
    cache = Path(config.cache) if config.cache else folder / "replies.jsonl"
    with RecordedClient(config.server, cache, run_id(folder), config.budget, _say) as client:
        client.tell_versions([grading.prompt.version])
        with tqdm(total=len(grading.reports), unit="report", desc="green", smoothing=0.1) as bar:

            def graded() -> None:
                bar.update()
                _stop_unread(config, grading)

            try:
                grading.run(client, config.server.concurrency, graded)
            except KeyboardInterrupt:
                _say(f"interrupted; the replies are in {cache}, the same command goes on")
                return 130
        return _finish(config, grading, config.server, client)


def _stop_unread(config: GreenConfig, grading: Grading) -> None:
    """Stop a model that never gives counts, before it has cost more."""
    limit, reasons = config.stop_after_unread, grading.unread()
    if limit is not None and reasons.total() >= limit and not grading.read:
        found = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
        raise DataError(
            f"none of the first {reasons.total()} replies has GREEN's counts ({found}); docs/evaluation.md says what a "
            "reply must look like. Serve GREEN's model, give it its published prompt, or set stop_after_unread=null"
        )


def _finish(config: GreenConfig, grading: Grading, server: ServedModel, client: RecordedClient) -> int:
    folder, source = Path(config.output_dir), Path(config.predictions)
    write_predictions(folder / "graded.jsonl", grading.written())
    record = source.with_suffix(".meta.json")  # so that evaluate finds what predict was asked
    if record.is_file():
        write_files(folder, {"graded.meta.json": record.read_bytes()}, overwrite=True)
    scores = [counts.score for counts in grading.graded.values() if counts.score is not None]
    manifest = {
        "model": server.identity(),
        "prompt": grading.prompt.version,
        "max_words": config.max_words,
        "max_tokens": config.max_tokens,
        "reports": len(grading.graded),
        "read": len(scores),
        "unread": dict(grading.unread()),
        "cut_off": grading.cut,
        "replies": client.spending(),
        "predictions_sha256": file_sha256(source),
        "versions": versions(),
        "commit": commit(),
    }
    write_files(folder, {"green.json": json_bytes(manifest)}, overwrite=True)
    unread = ", ".join(f"{reason} {count}" for reason, count in grading.unread().most_common()) or "0"
    print(f"{len(scores)} of {len(grading.graded)} reports graded, unread: {unread}; {folder / 'graded.jsonl'}")
    print("GREEN is no number to stand alone: evaluate reports it beside ROUGE-L and the F1 of findings")
    return 0


def _dry_run(config: GreenConfig, grading: Grading, server: ServedModel) -> int:
    """Print one request as it would be sent, and what all of them would take; nothing is sent or written."""
    most, example = grading.estimate(server)
    if example is not None:
        print(f"one request, as it would be sent:\n\n{server.shown_request(example)}\n")
    print("\n".join(estimate_lines(most, server.prices, config.budget, "nothing has been sent")))
    print(f"every report and its right one would be sent to {server.base_url}")
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
