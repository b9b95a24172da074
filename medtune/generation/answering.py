"""From questions to a prediction file: plans the queries, loads the model, writes the answers.

All functions take plain arguments, so that a recipe, a command or a server can call them.
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torchtune import training

from medtune.clients.messages import Usage
from medtune.config import instantiate
from medtune.data.sample import Sample
from medtune.data.source import SampleSource
from medtune.errors import ConfigError, DataError, ModelError
from medtune.evaluation.prediction import Prediction
from medtune.evaluation.protocols.base import Query
from medtune.evaluation.protocols.prompt import with_question
from medtune.evaluation.protocols.registry import plan_queries
from medtune.evaluation.robustness import PROBES
from medtune.generation.backends.base import Answerer, AnswerSettings, Backend
from medtune.generation.engine.generator import Generator
from medtune.generation.exemplars import ExemplarSource
from medtune.generation.identity import weights_identity
from medtune.generation.interfaces import AnswerModel
from medtune.generation.requests import Generation, Request
from medtune.models.weights import load_weights

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
OWN = ("model", "transform", "checkpoint")
"""Keys of medtune's own models in a recipe's config; a ``backend`` replaces them."""


def check_one_model(config: Any, verb: str) -> None:
    """Check that a config names one of medtune's own models or a backend, and not both.

    Args:
        config: A recipe's config with the keys of ``OWN`` and ``backend``.
        verb: What the model does, for the message.

    Raises:
        ValueError: If a key is missing or one too many.
    """
    given = [name for name in OWN if getattr(config, name) is not None]
    if config.backend is None:
        for name in OWN:
            if name not in given:
                raise ValueError(f"key {name!r} is missing; give {', '.join(OWN)}, or a backend instead")
    elif given:
        raise ValueError(f"backend and {given[0]} are both given, but only one can {verb}; leave the other out")


class Skipped:
    """Questions that were skipped because they could not be used. Only ids and reasons are kept, never their text.

    Args:
        allowed: Whether questions may be skipped.

    Attributes:
        reasons: Reason by name of the question or id of the query.
    """

    def __init__(self, allowed: bool) -> None:
        self.allowed = allowed
        self.reasons: dict[str, str] = {}

    def add(self, name: str, error: DataError) -> None:
        """Record a skipped question; raise the error if no question may be skipped."""
        if not self.allowed:
            raise error
        self.reasons[name] = str(error)

    def add_request(self, request: Request, error: DataError) -> None:
        """Call :meth:`add` for a request that an answerer cannot use."""
        self.add(request.id, error)


def choose_device(name: str, local_rank: int | None = None) -> torch.device:
    """Return the device for a name in a config.

    Args:
        name: ``auto`` (cuda where there is one), ``cpu`` or ``cuda``.
        local_rank: Number of this process on its machine if each process uses its own GPU; else None.

    Raises:
        ConfigError: If cuda is requested but not available, or if there are fewer GPUs than processes.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: cuda was asked for, but torch sees no GPU; set device=cpu or see `medtune doctor`")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank is None:
        return torch.device("cuda")
    if local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"device: process {local_rank} finds {torch.cuda.device_count()} GPUs here; start as many processes as "
            "there are GPUs (--nproc_per_node)"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def device_of(backend: Backend, name: str, rank: int = 0, world: int = 1) -> torch.device:
    """Return the device on which a backend's model answers on this process; a server needs none.

    Args:
        backend: The backend.
        name: Name of the device in a config.
        rank: Number of this process.
        world: Number of processes.

    Raises:
        ConfigError: See :func:`choose_device`.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", rank)) if world > 1 else None
    return choose_device("cpu" if backend.remote else name, local_rank)


def device_name(device: torch.device) -> str:
    """Return the name of the device in a summary."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def load_model(
    model: Mapping[str, Any], checkpoint: str, *, device: torch.device | str, dtype: torch.dtype
) -> AnswerModel:
    """Build a model and load its weights.

    Args:
        model: Component of a builder, without adapters.
        checkpoint: A folder in HF layout or one safetensors file.
        device: Device on which the model is built.
        dtype: Type of its weights.

    Raises:
        ModelError: If the checkpoint does not fit the model.
    """
    with training.set_default_dtype(dtype), torch.device(device):
        built = instantiate(model)
    missing, _ = built.load_state_dict(load_weights(checkpoint, built), strict=False)
    if missing:
        raise ModelError(
            f"{checkpoint} lacks {len(missing)} tensors of the model (first: {missing[0]}): exported weights "
            "have their adapters merged, so name the builder without adapters under `model`"
        )
    return built


@dataclass(frozen=True)
class MedtuneModel:
    """Backend for a model of :mod:`medtune.models`; the batched generator makes the answers.

    Attributes:
        model: Component of a builder, without adapters.
        transform: Component of its tokenizer and image transform.
        checkpoint: A folder in HF layout or one safetensors file.
        exemplars: Exemplars of a VITask run, which are added to the prompt; None leaves prompts unchanged.
        batch_size: Number of prompts per batch.
        window: Number of batches whose requests are sorted together.
        share_prefix: Read a beginning that several prompts of a batch have in common only once.
    """

    remote: ClassVar[bool] = False
    scores: ClassVar[bool] = True
    model: Mapping[str, Any]
    transform: Mapping[str, Any]
    checkpoint: str
    exemplars: ExemplarSource | None = None
    batch_size: int = 16
    window: int = 8
    share_prefix: bool = True

    def identity(self) -> dict[str, Any]:
        """Return the checksums of the weight files."""
        return weights_identity(self.checkpoint)

    def open(self, settings: AnswerSettings) -> Generator:
        """Load the model.

        Raises:
            ModelError: If the weights do not fit.
        """
        transform = instantiate(self.transform)
        return Generator(
            load_model(self.model, self.checkpoint, device=settings.device, dtype=settings.dtype),
            transform,
            batch_size=self.batch_size,
            max_new_tokens=settings.max_new_tokens,
            device=settings.device,
            dtype=settings.dtype,
            sampling=settings.sampling,
            window=self.window,
            extension=self.exemplars.open(transform, settings.device) if self.exemplars else None,
            share_prefix=self.share_prefix,
            on_error=settings.on_error,
        )


def plan(
    source: SampleSource,
    protocols: Sequence[str],
    *,
    swapped: Sequence[str] = (),
    seed: int = 0,
    limit: int | None = None,
    skipped: Skipped | None = None,
    robustness: bool | Sequence[str] = (),
    question: str | None = None,
) -> list[Query]:
    """Return the queries to ask. Queries on the same images are neighbours, so that each image is encoded once.

    Args:
        source: The questions.
        protocols: Names or dotted paths of the protocols.
        swapped: Protocols that are also asked on another question's image.
        seed: Seed of the random choices of the protocols and of the image swap.
        limit: Number of questions to take from the start; None takes all.
        skipped: Records questions that cannot be read; None raises their errors.
        robustness: Probes of the robustness card that are asked too; True takes all.
        question: Asked of samples without a question of their own; None asks only their own.

    Raises:
        ConfigError: If there is nothing to ask.
        DataError: If a question cannot be read and may not be skipped.
    """
    samples = list(_readable(source, limit, skipped or Skipped(False)))
    if question is not None:
        samples = [with_question(sample, question) for sample in samples]
    queries = plan_queries(samples, protocols, swapped=swapped, seed=seed, robustness=robustness)
    if not queries:
        raise ConfigError("there is nothing to ask; check questions and protocols")
    first = {query.sample.images: place for place, query in reversed(list(enumerate(queries)))}
    return sorted(queries, key=lambda query: first[query.sample.images])


def query_counts(queries: Sequence[Query]) -> str:
    """Return a line with the number of queries, and of those that the robustness card adds."""
    kinds = Counter("swapped" if query.meta.get("swapped") else query.meta.get("probe", "") for query in queries)
    plain = kinds.pop("", 0)
    parts = "".join(f", {name} {count:,}" for name in PROBES if (count := kinds.get(name)))
    times = f" ({len(queries) / plain:.1f} times as many)" if plain else ""
    return f"{len(queries):,} queries: as they are {plain:,}{parts}{times}"


def _readable(source: SampleSource, limit: int | None, skipped: Skipped) -> Iterator[Sample]:
    for index in range(min(len(source), limit or len(source))):
        try:
            yield source[index]
        except DataError as error:
            skipped.add(f"{source.name}[{index}]", error)


def requests_of(queries: Sequence[Query], source: SampleSource) -> Iterator[Request]:
    """Yield the queries as requests. A query with continuations is scored; no answer is generated for it."""
    for query in queries:
        yield Request(query.id, query.sample, source, query.continuations, 0 if query.continuations else None)


def row(query: Query, generation: Generation) -> Prediction:
    """Return the row of the prediction file for one query and its answer."""
    meta = {**query.meta, "tokens": generation.tokens, "stopped": generation.stopped}
    if generation.scores:
        meta["scores"] = list(generation.scores)
    if generation.score_tokens:
        meta["score_tokens"] = list(generation.score_tokens)
    if generation.notes:
        meta["notes"] = dict(generation.notes)
    return Prediction(query.id, query.task, query.prompt, generation.text, query.references, meta)


@dataclass(frozen=True)
class Outcome:
    """Counts and times of one process.

    Attributes:
        asked: Number of queries that were answered.
        images_encoded: Number of images that were encoded or sent.
        seconds: Duration, without the time for loading the model.
        skipped: Reasons by name of the question or id of the query.
        usage: Tokens and requests that a server reported; None for a model that runs in this process.
    """

    asked: int
    images_encoded: int
    seconds: float
    skipped: dict[str, str]
    usage: Usage | None = None


def answer(
    queries: Sequence[Query],
    source: SampleSource,
    open_answerer: Callable[[], Answerer],
    write: Callable[[Prediction], None],
    *,
    done: Container[str] = frozenset(),
    skipped: Skipped | None = None,
    progress: Callable[[int], None] | None = None,
) -> Outcome:
    """Ask queries and write each answer as soon as it is made.

    Args:
        queries: All queries. The windows are the same whether or not some queries are in ``done``.
        source: Opens their images.
        open_answerer: Loads the model or connects to it; not called if all queries are in ``done``.
        write: Writes one row of the prediction file.
        done: Ids of queries that were answered before.
        skipped: The object in which the answerer's settings record queries that cannot be used.
        progress: Called with the number of queries answered since the last call; the first call has 0 and comes once
            the model is loaded.
    """
    by_id = {query.id: query for query in queries}
    asked, encoded, usage, start = 0, 0, None, time.monotonic()
    if any(name not in done for name in by_id):
        answerer = open_answerer()
        start = time.monotonic()
        if progress:
            progress(0)
        for batch in answerer.batches(requests_of(queries, source), done=done):
            for generation in batch:
                write(row(by_id[generation.id], generation))
            asked += len(batch)
            if progress:
                progress(len(batch))
        encoded, usage = answerer.images_encoded, getattr(answerer, "usage", None)
    reasons = dict(skipped.reasons) if skipped else {}
    return Outcome(asked, encoded, time.monotonic() - start, reasons, usage)


def summarize(outcomes: Sequence[Outcome], queries: int, known: int, device: str) -> dict[str, Any]:
    """Return the totals over all processes, the content of ``predictions.summary.json``.

    Args:
        outcomes: One per process.
        queries: Number of queries.
        known: Number of queries that were answered before.
        device: Name of the device.
    """
    asked = sum(outcome.asked for outcome in outcomes)
    seconds = max(outcome.seconds for outcome in outcomes)
    reasons = {name: reason for outcome in outcomes for name, reason in outcome.skipped.items()}
    counted = [outcome.usage for outcome in outcomes if outcome.usage is not None]
    return {
        "queries": queries,
        "answered": known + asked,
        "asked_now": asked,
        "images_encoded": sum(outcome.images_encoded for outcome in outcomes),
        "seconds": round(seconds, 3),
        "queries_per_second": round(asked / seconds, 3) if seconds else 0.0,
        "device": device,
        "processes": len(outcomes),
        **({"usage": asdict(counted[0])} if counted else {}),
        "skipped": [{"id": name, "reason": reason} for name, reason in reasons.items()],
    }
