"""Let a served model write conversations about figures of articles, shown clinicians' demonstrations (BioMed-VITAL).

tune run medtune/recipes/curate.py --config curate/openai_server figures=figures.json image_root=images dry_run=true

``groups`` first chooses a diverse part of the figures; the prompt ``candidates-v1`` asks for two answers to each
question, between which clinicians choose. Every reply is on the disk as soon as it comes; a killed run continues.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from medtune.clients.budget import Budget, Ledger, Spent
from medtune.clients.served import ServedModel, estimate_lines
from medtune.config import Component, instantiate, recipe
from medtune.curation.asking import Asking, answered_before
from medtune.curation.batches import FOLDER, batch_line, mark_of, read_results, write_batches
from medtune.curation.choosing import Groups, choose_figures
from medtune.curation.demonstrations import Demonstrations, read_demonstrations
from medtune.curation.figures import MODALITIES, Figure, Figures, read_figures
from medtune.curation.generation import Generation, Pictures, shares
from medtune.curation.output import OUTPUTS, outputs, read_reply_of
from medtune.curation.prompts import Requests, Writing
from medtune.data.folders import claim as claim_folder
from medtune.data.images import image_root_of
from medtune.data.writing import json_bytes, write_files
from medtune.errors import ConfigError, DataError
from medtune.evaluation.prediction import Prediction, iterate_predictions
from medtune.evaluation.provenance import commit, versions
from medtune.generation.answering import Skipped
from medtune.generation.sharding import SharedLog
from medtune.masking import masked
from medtune.training.runtime import Runtime

LOG = "generations.jsonl"
CHOICE = ("groups.csv", "groups.png", "chosen.jsonl", "features")
WRITES = (
    LOG, "generations.rank*.jsonl", "generations.meta.json", *OUTPUTS, *CHOICE, "manifest.json", "run.json",
    "replies.jsonl", "replies.jsonl.lock", FOLDER,
)  # fmt: skip
"""All files that a run writes into its folder."""
LISTED = 20
"""Skipped figures that the manifest names."""


@dataclass
class CurateConfig:
    """Every key of a run that writes instruction data."""

    output_dir: str = field(metadata={"help": "folder of the conversations or candidates, and of manifest.json"})
    figures: str = field(metadata={"help": "JSON or JSON Lines of images with captions and in-text mentions"})
    image_root: str | None = field(default=None, metadata={"help": "folder or .tar of the images"})
    modalities: list[str] | None = field(default=None, metadata={"help": "only figures of these; null takes all"})
    groups: Groups | None = field(
        default=None, metadata={"help": "choose a diverse part: count (K), size (M), complex_share, seed"}
    )
    features: Component | None = field(default=None, metadata={"help": "what the groups are made of"})
    demonstrations: str | None = field(default=None, metadata={"help": "clinicians' conversations; null shows none"})
    per_modality: int = field(default=2, metadata={"help": "demonstrations of each modality in a request"})
    seed: int = field(default=0, metadata={"help": "seed of the draw of demonstrations"})
    writing: Writing = field(default_factory=Writing, metadata={"help": "prompt, rounds, sampling, limits"})
    server: ServedModel | None = field(default=None, metadata={"help": "the generator; null only chooses figures"})
    budget: Budget = field(default_factory=Budget, metadata={"help": "max_cost, max_tokens, max_requests; null: none"})
    cache: str | None = field(
        default=None, metadata={"help": "file of the replies; null: replies.jsonl in output_dir; runs may share one"}
    )
    batch: Literal["write", "read"] | None = field(
        default=None, metadata={"help": "write: OpenAI's batch files in place of requests; read: batch_results"}
    )
    batch_results: list[str] = field(default_factory=list, metadata={"help": "result and error files of a batch"})
    limit: int | None = field(default=None, metadata={"help": "only the first N figures"})
    on_error: Literal["raise", "skip"] = field(
        default="raise", metadata={"help": "what to do with a row or an image that cannot be used"}
    )
    stop_after_unparsed: int | None = field(
        default=50, metadata={"help": "stop if none of a process's first N replies can be read; null never stops"}
    )
    dry_run: bool = field(default=False, metadata={"help": "print two requests and the estimate; ask nothing"})

    def __post_init__(self) -> None:
        """Refuse invalid sizes, and keys that do not go together."""
        for name in ("limit", "stop_after_unparsed"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.per_modality < 0:
            raise ValueError("per_modality must not be negative")
        unknown = sorted(set(self.modalities or []) - set(MODALITIES))
        if unknown:
            raise ValueError(f"modalities: {unknown[0]!r} is unknown; those known are {', '.join(MODALITIES)}")
        if (self.groups is None) != (self.features is None):
            raise ValueError("groups and features go together: give both, or none")
        if self.server is None and self.groups is None:
            raise ValueError("there is nothing to do: set server.base_url and server.model, or groups and features")
        if (self.batch == "read") != bool(self.batch_results):
            raise ValueError("batch=read and batch_results go together")


@recipe(CurateConfig)
def main(config: CurateConfig) -> int:
    """Write the conversations or candidates."""
    with Runtime.answering("curate", remote=False) as runtime:
        return curate(config, runtime)


def curate(config: CurateConfig, runtime: Runtime) -> int:
    """Choose figures, ask about this process's share of them; process 0 writes the outputs."""
    skipped = Skipped(config.on_error == "skip")
    figures, every = chosen_by_keys(config, skipped)
    pictures = Pictures(image_root_of(config.image_root, None), figures.path.name)
    generation = Generation(requests_of(config), pictures, skipped.add)
    if config.dry_run:
        return dry_run(config, generation, every) if runtime.is_main else 0
    folder = Path(config.output_dir)
    runtime.on_rank0(lambda: claim_folder(folder, "curate", WRITES, lambda path: (path / LOG).is_file()))
    if config.groups is not None and config.features is not None:
        groups, features = config.groups, instantiate(config.features)
        every = runtime.on_rank0(
            lambda: choose_figures(folder, every, figures.sha256, groups, features, pictures.open, skipped.add, say)
        )
    if config.server is None:
        return 0
    if config.batch is not None and runtime.world > 1:
        raise ConfigError("batch files are written and read by one process; start curate without --nproc_per_node")
    made_with = identity(config, figures, generation.requests.demonstrations)
    with SharedLog(folder / LOG, lambda: made_with, runtime, say) as log:
        try:
            spent = work(config, config.server, generation, every, log, mark_of(made_with))
        except KeyboardInterrupt:
            if runtime.is_main:
                say(f"interrupted; {len(log.answered)} replies are in {log.path}, the same command goes on")
            return 130
        if spent is None:
            return 0
        log.finish([figure.id for figure in every])
        reasons = {name: reason for one in runtime.gather(skipped.reasons) for name, reason in one.items()}
        if runtime.is_main:
            finish(config, figures, every, reasons, made_with, spent)
    return 0


def chosen_by_keys(config: CurateConfig, skipped: Skipped) -> tuple[Figures, list[Figure]]:
    """Return the file's figures, and those that the keys ask for.

    Raises:
        DataError: A row cannot be used, or no figure is left.
    """
    figures = read_figures(config.figures, skipped.add)
    wanted = None if config.modalities is None else set(config.modalities)
    every = [figure for figure in figures.rows if wanted is None or wanted & set(figure.domains)]
    if not every:
        raise DataError(f"{figures.path} holds no figure of the modalities {', '.join(sorted(wanted or []))}.")
    return figures, every[: config.limit]


def requests_of(config: CurateConfig) -> Requests:
    """Return what makes the requests."""
    if config.demonstrations is None:
        return Requests(config.writing, Demonstrations((), 0))
    return Requests(config.writing, read_demonstrations(config.demonstrations, config.per_modality, config.seed))


def identity(config: CurateConfig, figures: Figures, demonstrations: Demonstrations) -> dict[str, Any]:
    """Return what the replies depend on; limits, groups and rules of reading only decide which are taken."""
    assert config.server is not None
    shown = {"sha256": demonstrations.sha256, "per_modality": demonstrations.per_modality, "seed": demonstrations.seed}
    return {
        "writing": config.writing.identity(),
        "server": config.server.identity(),
        "demonstrations": shown if demonstrations.pool else None,
        "figures": figures.sha256,
    }


def work(
    config: CurateConfig, server: ServedModel, generation: Generation, figures: list[Figure], log: SharedLog, mark: str
) -> Spent | None:
    """Ask, or write or read batch files; what was spent over all starts, None if the outputs cannot be made yet."""
    waiting = [figure for figure in figures if figure.id not in log.done]
    if config.batch == "write":
        write_requests(config, server, generation, waiting, log, mark)
        return None
    if config.batch == "read":
        by_id = {figure.id: figure for figure in figures}
        results = read_results(config.batch_results, by_id, mark, log.done, log.append)
        found = ", ".join(f"{kind} {count}" for kind, count in sorted(results.counts.items())) or "nothing"
        say(
            f"results: {found}; {len(waiting) - results.counts['taken'] - results.counts['rejected']} are still missing"
        )
        return Spent()
    asking = Asking(
        server, Path(config.output_dir), config.cache, config.budget, [config.writing.version], "curate", "figure", say
    )
    write, mine = Watched(config, log), shares(waiting, log.world.rank, log.world.world)
    return asking.run(
        log,
        len(figures),
        len(waiting),
        lambda client, told: generation.run(mine, client, server.concurrency, write, told),
    )


class Watched:
    """Writes rows to the log, and stops a generator none of whose replies can be read, before it has cost more.

    Args:
        config: The keys ``writing`` and ``stop_after_unparsed``.
        log: The log.
    """

    def __init__(self, config: CurateConfig, log: SharedLog) -> None:
        self._config, self._log, self._rows, self._read = config, log, 0, bool(log.done)

    def __call__(self, row: Prediction) -> None:
        """Write a row."""
        self._log.append(row)
        found = read_reply_of(row, self._config.writing)
        self._rows, self._read = self._rows + 1, self._read or not found.reason
        limit = self._config.stop_after_unparsed
        if limit is not None and not self._read and self._rows >= limit:
            raise DataError(
                f"none of the first {self._rows} replies is a conversation (the last one: {found.reason}); see "
                "docs/biomed_vital.md for what a reply must look like, choose another prompt, model and output_dir, or "
                "set stop_after_unparsed=null"
            )


def write_requests(
    config: CurateConfig,
    server: ServedModel,
    generation: Generation,
    waiting: list[Figure],
    log: SharedLog,
    mark: str,
) -> None:
    """Write batch files of the figures that have no reply yet, if they fit into the budget.

    Raises:
        BudgetSpentError: They do not fit.
    """
    ledger = Ledger(config.budget, server.prices)
    ledger.spent += batch_tokens(log.path)
    most = generation.estimate(waiting, server)

    def lines() -> Any:
        for figure in waiting:
            try:
                yield batch_line(generation.request(figure), server, mark)
            except ConfigError:
                raise
            except DataError as error:
                generation.refuse(figure.id, error)

    with ledger.reserved(most):
        files = write_batches(Path(config.output_dir) / FOLDER, lines())
    for path, count in files:
        print(f"{path}: {count} requests")
    print(f"estimate: at most {most.prompt_tokens:,} tokens of requests and {most.completion_tokens:,} of replies")
    print("upload the files, then give batch=read batch_results=[FILE, ...] with the same config")


def batch_tokens(log: Path) -> Spent:
    """Return what the results of batches in a log have used."""
    spent = Spent()
    for row in iterate_predictions(log) if log.is_file() else ():
        if row.meta.get("batch"):
            prompt, completion = row.meta.get("tokens", (0, 0))
            spent += Spent(1, prompt, completion)
    return spent


def finish(
    config: CurateConfig,
    figures: Figures,
    every: list[Figure],
    skipped: dict[str, str],
    made_with: dict[str, Any],
    spent: Spent,
) -> None:
    """Write the outputs and the manifest.

    Raises:
        DataError: No reply could be read.
    """
    assert config.server is not None
    folder, prices = Path(config.output_dir), config.server.prices
    files, counts = outputs(folder / LOG, {figure.id: figure for figure in every}, config.writing)
    cut = sum(Requests(config.writing, Demonstrations((), 0)).cuts(figure) for figure in every)
    spent = spent + batch_tokens(folder / LOG)
    missing = len(every) - counts["replies"]
    manifest = {
        "complete": missing == 0,
        "counts": {"figures": len(every), "repeated_rows": figures.repeated, "texts_cut": cut, **counts},
        "missing": missing,
        "skipped": dict(list(sorted(skipped.items()))[:LISTED]),
        "spent": {"requests": spent.requests, **spent.priced(prices)},
        "model": config.server.model,
        "identity": masked(made_with),
        "outputs": {name: content.digest for name, content in files.items()},
        "versions": versions(),
        "commit": commit(),
    }
    write_files(folder, {**files, "manifest.json": json_bytes(manifest)}, overwrite=True)
    aside = ", ".join(f"{reason} {n}" for reason, n in counts["kept_aside"].items()) or "none"
    print(
        f"{counts['parsed']} of {len(every)} figures have {counts['questions']} questions; kept aside: {aside}; "
        f"{len(skipped)} skipped, {missing} without a reply; written to {folder}"
    )
    if not counts["parsed"]:
        raise DataError(f"{folder}: no reply could be read; see aside.jsonl and 'kept_aside' in manifest.json")


def dry_run(config: CurateConfig, generation: Generation, figures: list[Figure]) -> int:
    """Print two requests as they would be sent, and what all of them may take; nothing is sent or written."""
    print(f"figures: {len(figures)}" + ("" if config.groups is None else f", of which {config.groups.size} are chosen"))
    server = config.server
    if server is None:
        print("no server is asked")
        return 0
    done = answered_before(Path(config.output_dir) / LOG)
    waiting = [figure for figure in figures if figure.id not in done]
    for number, figure in enumerate(waiting[:2], start=1):
        print(f"\nrequest {number}, as it would be sent:\n\n{server.shown_request(generation.request(figure))}")
    most = generation.estimate(waiting, server)
    if config.groups is not None and len(waiting) > config.groups.size:
        share = config.groups.size / len(waiting)
        most = Spent(config.groups.size, int(most.prompt_tokens * share), int(most.completion_tokens * share))
    print("\n" + "\n".join(estimate_lines(most, server.prices, config.budget, f"answered before: {len(done)}")))
    where = server.base_url if config.batch is None else "files"
    print(
        f"images: {most.requests} would be sent, all to {where}" if generation.requests.writing.looks else "no images"
    )
    return 0


def say(text: str) -> None:
    """Print a message for the user."""
    print(text, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
