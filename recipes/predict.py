"""Write a model's answers to a question file to predictions.jsonl; a killed run continues where it stopped.

The proxy instruction of InstFree is not used here: the prompt contains only the question.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from medtune.config import Component, instantiate, recipe, to_plain
from medtune.data.append import explained_writing
from medtune.data.folders import claim as claim_folder
from medtune.data.source import SampleSource
from medtune.data.writing import json_bytes, write_files
from medtune.evaluation.protocols.base import Query
from medtune.evaluation.protocols.registry import PROTOCOLS
from medtune.evaluation.robustness import chosen_probes
from medtune.generation.answer_table import write_answer_table
from medtune.generation.answering import (
    DTYPES,
    MedtuneModel,
    Skipped,
    answer,
    check_one_model,
    device_name,
    device_of,
    plan,
    query_counts,
    summarize,
)
from medtune.generation.backends.base import AnswerSettings, Backend, refuse_likelihoods
from medtune.generation.engine.sampling import Sampling
from medtune.generation.exemplars import ExemplarSource
from medtune.generation.run_model import other_images
from medtune.generation.sharding import Progress, SharedLog, shard
from medtune.training.runtime import Runtime

# Keys that affect the speed or the place of the computation, but not the answers.
NEUTRAL = (
    "output_dir",
    "checkpoint",
    "backend",
    "exemplars",
    "device",
    "batch_size",
    "window",
    "share_prefix",
    "on_error",
    "csv_delimiter",
)
WRITES = (
    "predictions.jsonl",
    "predictions.csv",
    "predictions.rank*.jsonl",
    "predictions.meta.json",
    "predictions.summary.json",
)
"""All files that a prediction writes into its folder."""


@dataclass
class PredictConfig:
    """Every key of a prediction run."""

    output_dir: str = field(metadata={"help": "folder of predictions.jsonl"})
    questions: Component = field(metadata={"help": "dataset builder; meta holds attribute, options and answer"})
    model: Component | None = field(default=None, metadata={"help": "model builder, without adapters"})
    transform: Component | None = field(default=None, metadata={"help": "tokenizer and image transform"})
    checkpoint: str | None = field(
        default=None, metadata={"help": "weights: a folder in HF layout or one safetensors file"}
    )
    backend: Component | None = field(
        default=None, metadata={"help": "a server or transformers; replaces model, transform and checkpoint"}
    )
    exemplars: ExemplarSource | None = field(
        default=None,
        metadata={"help": "VITask: path to the run's exemplar folder; tsm replaces the task-specific model (plug)"},
    )
    protocols: list[str] = field(
        default_factory=lambda: list(PROTOCOLS), metadata={"help": "protocols: which prompts are asked per question"}
    )
    swapped: list[str] = field(
        default_factory=list, metadata={"help": "protocols that are also asked with another question's image"}
    )
    robustness: bool | list[str] = field(
        default=False,
        metadata={"help": "ask for the robustness card: true, or some of swapped, no_image, options, paraphrase"},
    )
    question: str | None = field(
        default=None, metadata={"help": "protocol prompt: asked of rows without words, such as new images"}
    )
    limit: int | None = field(default=None, metadata={"help": "only the first N questions"})
    batch_size: int = field(default=16, metadata={"help": "prompts per batch; a backend has its own setting"})
    window: int = field(
        default=8, metadata={"help": "batches that are sorted together by length; their images are encoded once"}
    )
    share_prefix: bool = field(
        default=True, metadata={"help": "compute the common prefix of several prompts on one image once"}
    )
    max_new_tokens: int = field(default=64, metadata={"help": "maximum length of an answer in tokens"})
    sampling: Sampling | None = field(
        default=None, metadata={"help": "temperature, top_p, top_k, seed; null is greedy"}
    )
    dtype: Literal["fp32", "bf16"] = field(default="bf16", metadata={"help": "type of weights and caches"})
    device: Literal["auto", "cpu", "cuda"] = field(default="auto", metadata={"help": "auto: cuda if available"})
    on_error: Literal["raise", "skip"] = field(
        default="raise", metadata={"help": "what to do with a question that cannot be used"}
    )
    csv_delimiter: Literal[",", ";", "\t"] | None = field(
        default=",", metadata={"help": "of predictions.csv; ';' for Excel in German and the like; null: no such file"}
    )
    seed: int = field(default=0, metadata={"help": "seed of the protocols' random choices and of the swap"})

    def __post_init__(self) -> None:
        """Refuse invalid sizes, and check that exactly one model answers."""
        for name in ("batch_size", "window", "max_new_tokens", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.question is not None and (self.protocols != ["prompt"] or not self.question.strip()):
            raise ValueError("question must be a text, and is asked by the protocol prompt alone: protocols=[prompt]")
        probes = chosen_probes(self.robustness)
        if self.exemplars is not None and "no_image" in probes:
            raise ValueError(
                "exemplars are made from an image; name probes without no_image: robustness=[swapped, ...]"
            )
        check_one_model(self, "answer")
        if self.backend is not None and self.exemplars is not None:
            raise ValueError("a backend answers without exemplars; leave exemplars out")


@recipe(PredictConfig)
def main(config: PredictConfig) -> int:
    """Answer the questions and write the summary."""
    backend = chosen_backend(config)
    with Runtime.answering("predict", backend.remote) as runtime:
        return predict(config, backend, runtime)


def predict(config: PredictConfig, backend: Backend, runtime: Runtime) -> int:
    """Answer this process's share of the questions; process 0 writes the summary."""
    source: SampleSource = instantiate(config.questions)
    skipped = Skipped(config.on_error == "skip")
    queries = plan(
        source,
        config.protocols,
        swapped=config.swapped,
        seed=config.seed,
        limit=config.limit,
        skipped=skipped,
        robustness=config.robustness,
        question=config.question,
    )
    if not backend.scores:
        refuse_likelihoods(config.protocols, [query.task for query in queries if query.continuations])
    path = Path(config.output_dir) / "predictions.jsonl"

    def say(text: str) -> None:
        print(text, file=sys.stderr)

    if config.robustness and runtime.is_main:
        say(query_counts(queries))
    differing = other_images(config.checkpoint, config.questions) if config.checkpoint else None
    if differing and runtime.is_main:
        say(differing)
    runtime.on_rank0(lambda: claim_folder(path.parent, "predict", WRITES, _is_prediction))
    with SharedLog(path, lambda: identity(config, source, backend), runtime, say) as log:
        try:
            summary = answer_share(config, source, queries, log, skipped, backend)
        except KeyboardInterrupt:
            if runtime.is_main:
                say(f"interrupted; {len(log.answered)} answers are in {path}, the same command goes on")
            return 130
        log.finish([query.id for query in queries])
        if runtime.is_main and config.csv_delimiter is not None:
            with explained_writing(path):
                write_answer_table(path, config.csv_delimiter)
    if runtime.is_main:
        write_files(path.parent, {"predictions.summary.json": json_bytes(summary)}, overwrite=True)
        print(
            f"{summary['answered']} of {summary['queries']} queries answered in {path} ({summary['asked_now']} now, "
            f"{summary['queries_per_second']:.2f}/s, {summary['images_encoded']} images encoded, "
            f"{len(summary['skipped'])} skipped)"
        )
    return 0


def _is_prediction(folder: Path) -> bool:
    """Return whether a folder without a record holds predictions, judged by their own metadata file."""
    try:
        record = json.loads((folder / "predictions.meta.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and record.keys() >= {"config", "data"}


def chosen_backend(config: PredictConfig) -> Backend:
    """Return the config's backend, or medtune's own model as a backend."""
    if config.backend:
        return instantiate(config.backend)
    assert config.model is not None and config.transform is not None and config.checkpoint is not None
    return MedtuneModel(
        config.model,
        config.transform,
        config.checkpoint,
        config.exemplars,
        config.batch_size,
        config.window,
        config.share_prefix,
    )


def identity(config: PredictConfig, source: SampleSource, backend: Backend) -> dict[str, Any]:
    """Return everything that decides the answers; a backend reports which of its keys do."""
    plain = {key: value for key, value in to_plain(config).items() if key not in NEUTRAL}
    if not config.robustness:
        del plain["robustness"]  # so that answers of a version without the card can be continued
    exemplars = {"exemplars": config.exemplars.identity()} if config.exemplars else {}
    return {"config": plain, "weights": backend.identity(), "data": source.fingerprint(), **exemplars}


def answer_share(
    config: PredictConfig,
    source: SampleSource,
    queries: list[Query],
    log: SharedLog,
    skipped: Skipped,
    backend: Backend,
) -> dict[str, Any]:
    """Answer this process's queries, wait for the other processes, and summarize."""
    rank, world = log.world.rank, log.world.world
    device = device_of(backend, config.device, rank, world)
    settings = AnswerSettings(config.max_new_tokens, device, DTYPES[config.dtype], skipped.add_request, config.sampling)
    known = len(log.done & {query.id for query in queries})
    progress = Progress(log.path, log.world, len(queries), known)
    try:
        outcome = answer(
            shard(queries, world)[rank],
            source,
            lambda: backend.open(settings),
            log.append,
            done=frozenset(log.done),
            skipped=skipped,
            progress=progress,
        )
        outcomes = log.gather(outcome, meanwhile=progress)
    finally:
        progress.close()
    return summarize(outcomes, len(queries), known, "server" if backend.remote else device_name(device))


if __name__ == "__main__":
    sys.exit(main())
