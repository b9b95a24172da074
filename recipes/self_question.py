"""Let a policy describe images, ask about them and answer each question twice: candidates for a judge (STLLaVA-Med).

tune run medtune/recipes/self_question.py --config self_question/mini
tune run --nproc_per_node 4 medtune/recipes/self_question.py --config self_question/llava1_5_7b

Writes ``generations.jsonl`` (every text as soon as it is written; a killed run continues there), ``candidates.jsonl``
and ``manifest.json``. ``dry_run=true`` prints the amount of work and the prompts, and writes nothing.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from medtune.config import Component, instantiate, recipe, to_plain
from medtune.data.folders import claim as claim_folder
from medtune.data.source import SampleSource
from medtune.errors import DataError
from medtune.evaluation.prediction import iterate_predictions
from medtune.generation.answering import DTYPES, Skipped, check_one_model, device_of
from medtune.generation.backends.base import AnswerSettings, Backend
from medtune.generation.requests import Request
from medtune.generation.self_questioning.output import plan_lines, write_candidates
from medtune.generation.self_questioning.pictures import Chosen, choose_pictures
from medtune.generation.self_questioning.policy import Policy
from medtune.generation.self_questioning.prompts import Prompts, every_id
from medtune.generation.self_questioning.run import Questioner, written
from medtune.generation.self_questioning.settings import Answer, Ask, Describe, Settings
from medtune.generation.self_questioning.sift import Texts
from medtune.generation.sharding import Progress, SharedLog
from medtune.masking import masked
from medtune.training.runtime import Runtime

# Keys that affect the speed or the place of the computation, but not the texts.
NEUTRAL = ("output_dir", "checkpoint", "backend", "device", "batch_size", "wave", "share_prefix", "on_error", "dry_run")
LOG = "generations.jsonl"
WRITES = (LOG, "generations.rank*.jsonl", "generations.meta.json", "candidates.jsonl", "manifest.json")


@dataclass
class SelfQuestionConfig:
    """Every key of a self-questioning run."""

    output_dir: str = field(metadata={"help": "folder of candidates.jsonl"})
    dataset: Component = field(metadata={"help": "dataset builder; only ids and images of its rows are used"})
    model: Component | None = field(default=None, metadata={"help": "model builder, without adapters"})
    transform: Component | None = field(default=None, metadata={"help": "tokenizer and image transform"})
    checkpoint: str | None = field(default=None, metadata={"help": "the policy: merged weights of stage 1"})
    backend: Component | None = field(
        default=None, metadata={"help": "a server or transformers; replaces model, transform and checkpoint"}
    )
    limit: int | None = field(default=None, metadata={"help": "size of a random choice of images; null takes all"})
    describe: Describe = field(default_factory=Describe, metadata={"help": "prompt, max_new_tokens, sampling"})
    ask: Ask = field(
        default_factory=Ask,
        metadata={"help": "count, max_new_tokens, sampling; prompt asks a model that has no virtual user"},
    )
    answer: Answer = field(default_factory=Answer, metadata={"help": "max_new_tokens, sampling, two seeds"})
    batch_size: int = field(default=20, metadata={"help": "texts written at once; a backend has its own setting"})
    wave: int = field(default=64, metadata={"help": "images that are described, asked about and answered together"})
    share_prefix: bool = field(default=True, metadata={"help": "read a beginning that prompts share only once"})
    dtype: Literal["fp32", "bf16"] = field(default="bf16", metadata={"help": "type of weights and caches"})
    device: Literal["auto", "cpu", "cuda"] = field(default="auto", metadata={"help": "auto: cuda if available"})
    on_error: Literal["raise", "skip"] = field(
        default="raise", metadata={"help": "what to do with a row or an image that cannot be used"}
    )
    seed: int = field(default=0, metadata={"help": "seed of the choice of images"})
    dry_run: bool = field(default=False, metadata={"help": "print the amount of work and the prompts; write nothing"})

    def __post_init__(self) -> None:
        """Refuse invalid sizes, and check that exactly one model writes."""
        for name in ("batch_size", "wave", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        check_one_model(self, "write")
        if self.backend is not None and self.ask.prompt is None:
            raise ValueError("a backend has no virtual user; give ask.prompt, a request for a question in words")

    @property
    def settings(self) -> Settings:
        """The settings of all steps."""
        return Settings(self.describe, self.ask, self.answer)


class Refusals(Skipped):
    """Rows, images and prompts that cannot be used; only those before the first text of an image may end the run.

    A prompt that the policy's own words have made too long is always left out and counted.
    """

    def add_request(self, request: Request, error: DataError) -> None:
        """Record a request that cannot be answered."""
        if len(request.sample.messages) == 1 and request.id.endswith("/description"):
            self.add(request.id, error)
        else:
            self.reasons[request.id] = str(error)


@recipe(SelfQuestionConfig)
def main(config: SelfQuestionConfig) -> int:
    """Write the candidates."""
    backend = chosen_backend(config)
    with Runtime.answering("self_question", backend.remote) as runtime:
        return question(config, backend, runtime)


def question(config: SelfQuestionConfig, backend: Backend, runtime: Runtime) -> int:
    """Write this process's share of the texts; process 0 makes the candidates."""
    source: SampleSource = instantiate(config.dataset)
    refusals = Refusals(config.on_error == "skip")
    chosen = choose_pictures(source, config.limit, config.seed, refusals.add)
    if config.dry_run:
        if runtime.is_main:
            print(*plan_lines(source, chosen, config.settings), "dry run: nothing was written", sep="\n")
        return 0
    path = Path(config.output_dir) / LOG

    def say(text: str) -> None:
        print(text, file=sys.stderr)

    runtime.on_rank0(lambda: claim_folder(path.parent, "self_question", WRITES, _is_self_questioning))
    made_with = runtime.on_rank0(lambda: identity(config, source, backend))
    with SharedLog(path, lambda: made_with, runtime, say) as log:
        try:
            asked = write_share(config, source, chosen, log, refusals, backend)
        except KeyboardInterrupt:
            if runtime.is_main:
                say(f"interrupted; {len(log.answered)} texts are in {path}, the same command goes on")
            return 130
        log.finish([name for picture in chosen.pictures for name in every_id(picture, config.settings)])
        skipped = {name: reason for one in runtime.gather(refusals.reasons) for name, reason in one.items()}
        if runtime.is_main:
            manifest = write_candidates(path, chosen, config.settings, masked(made_with), skipped)
            report(manifest, path.parent, *asked)
    return 0


def chosen_backend(config: SelfQuestionConfig) -> Backend:
    """Return the config's backend, or medtune's own model as a backend."""
    if config.backend:
        return instantiate(config.backend)
    assert config.model is not None and config.transform is not None and config.checkpoint is not None
    return Policy(
        config.model,
        config.transform,
        config.checkpoint,
        batch_size=config.batch_size,
        share_prefix=config.share_prefix,
    )


def identity(config: SelfQuestionConfig, source: SampleSource, backend: Backend) -> dict[str, Any]:
    """Return everything that decides the texts; weights and data by their contents."""
    plain = {key: value for key, value in to_plain(config).items() if key not in NEUTRAL}
    return {"config": plain, "weights": backend.identity(), "data": source.fingerprint()}


def known_texts(log: SharedLog, ids: set[str]) -> Texts:
    """The texts of this process's share that were written before; read before any process goes on writing."""
    wanted = ids & log.done
    return log.world.on_all_ranks(
        lambda: {row.id: written(row) for row in iterate_predictions(log.path) if row.id in wanted} if wanted else {}
    )


def write_share(
    config: SelfQuestionConfig,
    source: SampleSource,
    chosen: Chosen,
    log: SharedLog,
    refusals: Refusals,
    backend: Backend,
) -> tuple[int, int]:
    """Write this process's texts and wait for the other processes; the texts and encoded images of all of them."""
    rank, world, settings = log.world.rank, log.world.world, config.settings
    device = device_of(backend, config.device, rank, world)
    share = chosen.pictures[rank::world]  # no two pictures show the same image
    known = known_texts(log, {name for picture in share for name in every_id(picture, settings)})
    answering = AnswerSettings(settings.answer.max_new_tokens, device, DTYPES[config.dtype], refusals.add_request)
    total = len(chosen.pictures) * settings.texts_per_image
    progress = Progress(log.path, log.world, total, len(log.done), title="self_question", unit="text")
    questioner = Questioner(Prompts(source, settings), lambda: backend.open(answering), log.append, known, progress)
    try:
        questioner(share, config.wave)
        outcomes = log.gather((questioner.asked, questioner.images_encoded), meanwhile=progress)
    finally:
        progress.close()
    return sum(asked for asked, _ in outcomes), sum(encoded for _, encoded in outcomes)


def report(manifest: dict[str, Any], folder: Path, asked: int, encoded: int) -> None:
    """Print what was made.

    Raises:
        DataError: If no candidate is left.
    """
    counts = manifest["counts"]
    dropped = "; ".join(f"{reason}: {count}" for reason, count in manifest["dropped"].items())
    print(
        f"{counts['candidates']} candidates of {counts['chosen']} images in {folder / 'candidates.jsonl'} "
        f"({asked} texts now, {encoded} images encoded; dropped: {dropped or 'nothing'})"
    )
    if not counts["candidates"]:
        raise DataError(f"{folder}: no candidate is left; see 'dropped' in manifest.json, and the texts in {LOG}")


def _is_self_questioning(folder: Path) -> bool:
    """Return whether a folder without a record holds such a log, judged by the log's own metadata file."""
    try:
        record = json.loads((folder / "generations.meta.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and "ask" in record.get("config", {})


if __name__ == "__main__":
    sys.exit(main())
