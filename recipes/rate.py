"""Let a served model rate questions with their answers from 0 to 10 by clinicians' criteria (BioMed-VITAL, Fig. 9).

tune run medtune/recipes/rate.py --config rate/openai_server data=[conversations.jsonl] image_root=images dry_run=true

Conversations are rated turn by turn, candidates answer by answer. Every reply is on the disk as soon as it comes; a
killed run continues. The recipe selector_pairs makes pairs of the ratings.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from medtune.clients.budget import Budget, Spent
from medtune.clients.served import ServedModel, estimate_lines
from medtune.config import recipe
from medtune.curation.asking import Asking, answered_before
from medtune.curation.rating import Criteria, Rating, rating_counts, rating_lines
from medtune.curation.records import Record, read_records
from medtune.data.folders import claim as claim_folder
from medtune.data.images import image_root_of
from medtune.data.writing import file_sha256, json_bytes, measured, write_files
from medtune.errors import DataError
from medtune.evaluation.prediction import Prediction
from medtune.evaluation.provenance import commit, versions
from medtune.generation.answering import Skipped
from medtune.generation.sharding import SharedLog
from medtune.masking import masked
from medtune.training.runtime import Runtime

LOG = "replies_read.jsonl"
WRITES = (
    LOG, "replies_read.rank*.jsonl", "replies_read.meta.json", "ratings.jsonl", "manifest.json", "run.json",
    "replies.jsonl", "replies.jsonl.lock",
)  # fmt: skip
"""All files that a run writes into its folder."""
LISTED = 20


@dataclass
class RateConfig:
    """Every key of a run that rates."""

    output_dir: str = field(metadata={"help": "folder of ratings.jsonl and manifest.json"})
    data: list[str] = field(metadata={"help": "JSON Lines of conversations, or of candidates with two answers"})
    server: ServedModel = field(metadata={"help": "the rating model"})
    criteria: Criteria = field(default_factory=Criteria, metadata={"help": "prompt, sampling, limits"})
    image_root: str | None = field(default=None, metadata={"help": "folder or .tar of the images"})
    budget: Budget = field(default_factory=Budget, metadata={"help": "max_cost, max_tokens, max_requests; null: none"})
    cache: str | None = field(
        default=None, metadata={"help": "file of the replies; null: replies.jsonl in output_dir; runs may share one"}
    )
    limit: int | None = field(default=None, metadata={"help": "only the first N questions"})
    on_error: Literal["raise", "skip"] = field(
        default="raise", metadata={"help": "what to do with a row or an image that cannot be used"}
    )
    stop_after_unread: int | None = field(
        default=25, metadata={"help": "stop if none of a process's first N replies has a score; null never stops"}
    )
    dry_run: bool = field(default=False, metadata={"help": "print a request and the estimate; ask nothing"})

    def __post_init__(self) -> None:
        """Refuse invalid sizes."""
        if not self.data:
            raise ValueError("data is empty; name at least one file")
        for name in ("limit", "stop_after_unread"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


@recipe(RateConfig)
def main(config: RateConfig) -> int:
    """Rate the questions."""
    with Runtime.answering("rate", remote=False) as runtime:
        return rate(config, runtime)


def rate(config: RateConfig, runtime: Runtime) -> int:
    """Ask about this process's share; process 0 writes the ratings."""
    skipped = Skipped(config.on_error == "skip")
    records = every_record(config, skipped)
    rating = Rating(config.criteria, image_root_of(config.image_root, None), skipped.add)
    if config.dry_run:
        return dry_run(config, rating, records) if runtime.is_main else 0
    folder = Path(config.output_dir)
    runtime.on_rank0(lambda: claim_folder(folder, "rate", WRITES, lambda path: (path / LOG).is_file()))
    made_with = identity(config)
    with SharedLog(folder / LOG, lambda: made_with, runtime, say) as log:
        try:
            spent = work(config, rating, records, log)
        except KeyboardInterrupt:
            if runtime.is_main:
                say(f"interrupted; {len(log.answered)} replies are in {log.path}, the same command goes on")
            return 130
        log.finish([record.id for record in records])
        reasons = {name: reason for one in runtime.gather(skipped.reasons) for name, reason in one.items()}
        if runtime.is_main:
            finish(config, records, reasons, made_with, spent)
    return 0


def every_record(config: RateConfig, skipped: Skipped) -> list[Record]:
    """Return the questions of all files.

    Raises:
        DataError: A row cannot be used, or an id is in two files.
    """
    records: list[Record] = []
    owner: dict[str, str] = {}
    for path in config.data:
        for record in read_records(path, skipped.add):
            if owner.setdefault(record.row, path) != path:
                raise DataError(f"{path}: the id {record.row!r} is in {owner[record.row]} too; give each row its own.")
            records.append(record)
    return records[: config.limit]


def identity(config: RateConfig) -> dict[str, Any]:
    """Return what the replies depend on."""
    return {
        "criteria": config.criteria.identity(),
        "server": config.server.identity(),
        "data": [file_sha256(Path(path).expanduser()) for path in config.data],
    }


def work(config: RateConfig, rating: Rating, records: list[Record], log: SharedLog) -> Spent:
    """Ask about this process's share of the questions that have no reply; return what all starts have spent."""
    waiting = [record for record in records if record.id not in log.done]
    asking = Asking(
        config.server, Path(config.output_dir), config.cache, config.budget, [config.criteria.read.version], "rate",
        "question", say,
    )  # fmt: skip
    write, mine = Watched(config, log), waiting[log.world.rank :: log.world.world]
    return asking.run(
        log,
        len(records),
        len(waiting),
        lambda client, told: rating.run(mine, client, config.server.concurrency, write, told),
    )


class Watched:
    """Writes rows to the log, and stops a model that gives no scores, before it has cost more.

    Args:
        config: The keys ``criteria`` and ``stop_after_unread``.
        log: The log.
    """

    def __init__(self, config: RateConfig, log: SharedLog) -> None:
        self._config, self._log, self._rows, self._read = config, log, 0, bool(log.done)

    def __call__(self, row: Prediction) -> None:
        """Write a row."""
        self._log.append(row)
        found = self._config.criteria.score(row)
        self._rows, self._read = self._rows + 1, self._read or found.scores is not None
        limit = self._config.stop_after_unread
        if limit is not None and not self._read and self._rows >= limit:
            raise DataError(
                f"none of the first {self._rows} replies has a score (the last one: {found.reason}); see "
                "docs/biomed_vital.md for what a reply must look like, choose another prompt, model and output_dir, or "
                "set stop_after_unread=null"
            )


def finish(
    config: RateConfig, records: list[Record], skipped: dict[str, str], made_with: dict[str, Any], spent: Spent
) -> None:
    """Write the ratings and the manifest.

    Raises:
        DataError: No reply has a score.
    """
    folder, ids = Path(config.output_dir), [record.id for record in records]
    counts = rating_counts(folder / LOG, ids, config.criteria)
    replies = counts["rated"] + sum(counts["unread"].values())
    manifest = {
        "complete": replies == len(records),
        "counts": counts,
        "missing": len(records) - replies,
        "skipped": dict(list(sorted(skipped.items()))[:LISTED]),
        "made_with": masked(made_with),
        "spent": {"requests": spent.requests, **spent.priced(config.server.prices)},
        "versions": versions(),
        "commit": commit(),
    }
    ratings = measured(lambda: rating_lines(folder / LOG, ids, config.criteria))
    write_files(folder, {"ratings.jsonl": ratings, "manifest.json": json_bytes(manifest)}, overwrite=True)
    unread = ", ".join(f"{reason} {count}" for reason, count in counts["unread"].items()) or "none"
    print(
        f"{counts['rated']} of {len(records)} questions rated; without a score: {unread}; {len(skipped)} skipped; "
        f"written to {folder / 'ratings.jsonl'}"
    )
    if not counts["rated"]:
        raise DataError(f"{folder}: no reply has a score; see 'unread' in manifest.json")


def dry_run(config: RateConfig, rating: Rating, records: list[Record]) -> int:
    """Print a request as it would be sent, and what all of them may take; nothing is sent or written."""
    done = answered_before(Path(config.output_dir) / LOG)
    waiting = [record for record in records if record.id not in done]
    print(f"questions: {len(records)}")
    if waiting:
        print(f"\na request, as it would be sent:\n\n{config.server.shown_request(rating.request(waiting[0]))}\n")
    most = rating.estimate(waiting, config.server)
    print("\n".join(estimate_lines(most, config.server.prices, config.budget, f"answered before: {len(done)}")))
    looks = config.criteria.looks
    print(f"images: {most.requests} would be sent, all to {config.server.base_url}" if looks else "no images")
    return 0


def say(text: str) -> None:
    """Print a message for the user."""
    print(text, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
