"""A model's answers to a question file, written to predictions.jsonl; a killed run goes on where it stopped.

The proxy instruction of InstFree has no part here: the model is asked with the question alone.
"""

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torchtune import training
from tqdm import tqdm

from medtune.config import Component, instantiate, recipe, to_plain
from medtune.data.folders import claim as claim_folder
from medtune.data.sample import Sample
from medtune.data.source import SampleSource
from medtune.data.writing import write_whole
from medtune.errors import ConfigError, DataError, ModelError
from medtune.evaluation.prediction import Prediction, PredictionLog
from medtune.evaluation.protocols.base import Query
from medtune.evaluation.protocols.registry import PROTOCOLS, plan_queries
from medtune.generation.backend import Answerer, AnswerSettings, Backend, refuse_likelihoods
from medtune.generation.exemplars import ExemplarSource
from medtune.generation.generator import Generator
from medtune.generation.identity import claim, weights_identity
from medtune.generation.requests import Generation, Request
from medtune.generation.sampling import Sampling
from medtune.generation.seams import AnswerModel
from medtune.models.weights import load_weights

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Keys that change how fast or where answers are made, not which.
NEUTRAL = ("output_dir", "checkpoint", "backend", "exemplars", "device", "batch_size", "window", "on_error")

WRITES = ("predictions.jsonl", "predictions.meta.json", "predictions.summary.json")

# What medtune's own models need; a backend stands in their place.
OWN = ("model", "transform", "checkpoint")


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
        default=None, metadata={"help": "a server or transformers, in place of model, transform and checkpoint"}
    )
    exemplars: ExemplarSource | None = field(
        default=None,
        metadata={"help": "VITask: path to the run's exemplar folder; tsm swaps another task-specific model in (plug)"},
    )
    protocols: list[str] = field(default_factory=lambda: list(PROTOCOLS), metadata={"help": "how to ask"})
    swapped: list[str] = field(
        default_factory=list, metadata={"help": "protocols that are asked on another question's image too"}
    )
    limit: int | None = field(default=None, metadata={"help": "only the first N questions"})
    batch_size: int = field(default=16, metadata={"help": "prompts answered together; a backend has its own way"})
    window: int = field(
        default=8, metadata={"help": "batches sorted together, by length; their images are encoded once"}
    )
    max_new_tokens: int = field(default=64, metadata={"help": "longest answer"})
    sampling: Sampling | None = field(
        default=None, metadata={"help": "temperature, top_p, top_k, seed; null is greedy"}
    )
    dtype: Literal["fp32", "bf16"] = field(default="bf16", metadata={"help": "type of weights and caches"})
    device: Literal["auto", "cpu", "cuda"] = field(default="auto", metadata={"help": "cuda where there is one"})
    on_error: Literal["raise", "skip"] = field(default="raise", metadata={"help": "a question that cannot be used"})
    seed: int = field(default=0, metadata={"help": "of the protocols' coins and of the swap"})

    def __post_init__(self) -> None:
        """Refuse sizes that no run can have."""
        for name in ("batch_size", "window", "max_new_tokens", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self._check_who_answers()

    def _check_who_answers(self) -> None:
        given = [name for name in OWN if getattr(self, name) is not None]
        if self.backend is None:
            for name in OWN:
                if name not in given:
                    raise ValueError(f"key {name!r} is missing; give {', '.join(OWN)}, or a backend instead")
        elif given:
            raise ValueError(f"backend and {given[0]} are both given, but only one can answer; leave the other out")
        elif self.sampling is not None or self.exemplars is not None:
            raise ValueError("a backend answers greedily and without exemplars; leave sampling and exemplars out")


class Skipped:
    """Questions left out because they could not be used: ids and reasons, never their text."""

    def __init__(self, allowed: bool) -> None:
        self.allowed = allowed
        self.reasons: dict[str, str] = {}

    def add(self, name: str, error: DataError) -> None:
        """Take note of a question, or stop the run if none may be skipped."""
        if not self.allowed:
            raise error
        self.reasons[name] = str(error)


@recipe(PredictConfig)
def main(config: PredictConfig) -> int:
    """Answer the questions and write the summary."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("predict runs in one process; start it without --nproc_per_node, once per model")
    source = instantiate(config.questions)
    skipped = Skipped(config.on_error == "skip")
    backend: Backend | None = instantiate(config.backend) if config.backend else None
    queries = plan(config, source, skipped)
    if backend:
        refuse_likelihoods(config.protocols, [query.task for query in queries if query.continuations])
    path = Path(config.output_dir) / "predictions.jsonl"
    claim_folder(path.parent, "predict", WRITES, _is_prediction)
    claim(path, identity(config, source, backend))
    size = path.stat().st_size if path.is_file() else 0
    with PredictionLog(path) as log:
        if path.stat().st_size < size:
            print(f"{path}: cut off a torn last line of {size - path.stat().st_size} bytes", file=sys.stderr)
        try:
            summary = answer(config, source, queries, log, skipped, backend)
        except KeyboardInterrupt:
            print(f"interrupted; {len(log.done)} answers are in {path}, the same command goes on", file=sys.stderr)
            return 130
    write_whole(path.with_name("predictions.summary.json"), json.dumps(summary, indent=2) + "\n")
    print(
        f"{summary['answered']} of {summary['queries']} queries answered in {path} ({summary['asked_now']} now, "
        f"{summary['queries_per_second']:.2f}/s, {summary['images_encoded']} images encoded, "
        f"{len(summary['skipped'])} skipped)"
    )
    return 0


def _is_prediction(folder: Path) -> bool:
    """Whether a folder without a record is that of answers: their record stands beside them, or says what it is of."""
    try:
        record = json.loads((folder / "predictions.meta.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and record.keys() >= {"config", "data"}


def plan(config: PredictConfig, source: SampleSource, skipped: Skipped) -> list[Query]:
    """The queries to ask; those on one image stand together, so that it is encoded once."""
    samples = list(_readable(source, config.limit, skipped))
    queries = plan_queries(samples, config.protocols, swapped=config.swapped, seed=config.seed)
    if not queries:
        raise ConfigError("there is nothing to ask; check questions and protocols")
    first = {query.sample.images: place for place, query in reversed(list(enumerate(queries)))}
    return sorted(queries, key=lambda query: first[query.sample.images])


def _readable(source: SampleSource, limit: int | None, skipped: Skipped) -> Iterator[Sample]:
    for index in range(min(len(source), limit or len(source))):
        try:
            yield source[index]
        except DataError as error:
            skipped.add(f"{source.name}[{index}]", error)


def identity(config: PredictConfig, source: SampleSource, backend: Backend | None) -> dict[str, Any]:
    """What decides the answers; a backend says itself which of its keys do."""
    plain = {key: value for key, value in to_plain(config).items() if key not in NEUTRAL}
    weights = backend.identity() if backend else weights_identity(str(config.checkpoint))
    beside = {"exemplars": config.exemplars.identity()} if config.exemplars else {}
    return {"config": plain, "weights": weights, "data": source.fingerprint(), **beside}


def load_model(config: PredictConfig, device: torch.device) -> AnswerModel:
    """The model with its weights, on the device."""
    assert config.model is not None and config.checkpoint is not None  # the config has seen to it
    with training.set_default_dtype(DTYPES[config.dtype]), device:
        model = instantiate(config.model)
    missing, _ = model.load_state_dict(load_weights(config.checkpoint, model), strict=False)
    if missing:
        raise ModelError(
            f"{config.checkpoint} lacks {len(missing)} tensors of the model (first: {missing[0]}): exported weights "
            "have their adapters merged, so name the builder without adapters under `model`"
        )
    return model


def answer(
    config: PredictConfig,
    source: SampleSource,
    queries: Sequence[Query],
    log: PredictionLog,
    skipped: Skipped,
    backend: Backend | None,
) -> dict[str, Any]:
    """Ask what the log does not answer yet, and write each answer at once."""
    by_id = {query.id: query for query in queries}
    known = len(log.done & by_id.keys())
    start, encoded = time.monotonic(), 0
    device = torch.device("cpu") if backend and backend.remote else _device(config.device)
    if known < len(queries):
        answerer = build_answerer(config, device, skipped, backend)
        requests = (
            Request(query.id, query.sample, source, query.continuations, 0 if query.continuations else None)
            for query in queries
        )
        start = time.monotonic()
        with tqdm(total=len(queries), initial=known, unit="query", desc="predict", smoothing=0.1) as bar:
            for batch in answerer.batches(requests, done=frozenset(log.done)):
                for generation in batch:
                    log.append(row(by_id[generation.id], generation))
                bar.update(len(batch))
        encoded = answerer.images_encoded
    asked, seconds = len(log.done & by_id.keys()) - known, time.monotonic() - start
    return {
        "queries": len(queries),
        "answered": known + asked,
        "asked_now": asked,
        "images_encoded": encoded,
        "seconds": round(seconds, 3),
        "queries_per_second": round(asked / seconds, 3),
        "device": "server" if backend and backend.remote else _device_name(device),
        "skipped": [{"id": name, "reason": reason} for name, reason in skipped.reasons.items()],
    }


def build_answerer(config: PredictConfig, device: torch.device, skipped: Skipped, backend: Backend | None) -> Answerer:
    """What answers: the backend, or medtune's own generator."""

    def skip(request: Request, error: DataError) -> None:
        skipped.add(request.id, error)

    if backend:
        return backend.open(AnswerSettings(config.max_new_tokens, device, DTYPES[config.dtype], skip))
    assert config.transform is not None
    transform = instantiate(config.transform)
    return Generator(
        load_model(config, device),
        transform,
        batch_size=config.batch_size,
        max_new_tokens=config.max_new_tokens,
        device=device,
        dtype=DTYPES[config.dtype],
        sampling=config.sampling,
        window=config.window,
        exemplars=config.exemplars.open(transform, device) if config.exemplars else None,
        on_error=skip,
    )


def row(query: Query, generation: Generation) -> Prediction:
    """The line of the prediction file."""
    meta = {**query.meta, "tokens": generation.tokens, "stopped": generation.stopped}
    if generation.scores:
        meta["scores"] = list(generation.scores)
    if generation.score_tokens:
        meta["score_tokens"] = list(generation.score_tokens)
    return Prediction(query.id, query.task, query.prompt, generation.text, query.references, meta)


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: cuda was asked for, but torch sees no GPU; set device=cpu or see `medtune doctor`")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


if __name__ == "__main__":
    sys.exit(main())
