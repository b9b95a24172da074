"""``medtune plan``: shows what a training config would do. It needs no weights, no data in memory and no GPU."""

import inspect
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torchtune import training

from medtune.config import Component, import_path, instantiate, load_config, resolve_path
from medtune.data.batching import BatchPlan
from medtune.data.preflight import Preflight, preflight
from medtune.errors import ConfigError, MedtuneError, ModelError
from medtune.models.common.interface import BatchShape, Trainable
from medtune.models.weights import check_weights
from medtune.objectives.base import Objective, Stage
from medtune.objectives.companions import load_companions
from medtune.training import memory
from medtune.training.adapter import adapter_tensors
from medtune.training.building import DTYPES
from medtune.training.config import TrainConfig, check_loggers
from medtune.training.feature_cache import check_frozen, readable_size
from medtune.training.leakage import compare_splits
from medtune.training.optimization import check_rates, unfit
from medtune.training.parts import TrainedParts, set_aside_frozen
from medtune.training.progress import Progress

GB = 1e9
MEASURED_ROWS = 5000
ASSUMED_TOKENS = 512


@dataclass
class Plan:
    """The result of ``medtune plan``.

    Attributes:
        sections: Title and text of each section of the printout.
        problems: Why the config cannot run here; empty if it can.
        memory: Item -> bytes on each GPU, for the stage that needs the most.
    """

    sections: list[tuple[str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    memory: dict[str, float] = field(default_factory=dict)

    def text(self) -> str:
        """The printout."""
        return "\n\n".join(f"{title}\n{text}" for title, text in self.sections)


@dataclass(frozen=True)
class Data:
    """The number of rows, and the tokens and tiles of the measured rows."""

    rows: int
    checked: Preflight

    @property
    def mean_tokens(self) -> float:
        """Mean number of tokens of a sample."""
        return float(self.checked.lengths.mean())


class _Spread:
    """A subset of a source's rows at equal distances, so that a large source is measured in seconds."""

    def __init__(self, source: Any, rows: int) -> None:
        self.source, self.name = source, source.name
        self.step = max(1, -(-len(source) // rows))

    def __len__(self) -> int:
        return -(-len(self.source) // self.step)

    def __getitem__(self, index: int) -> Any:
        return self.source[index * self.step]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)


def plan(config: str, overrides: Sequence[str] = (), gpus: int | None = None, leakage: Path | None = None) -> Plan:
    """Calculate parts, data, steps and memory.

    Args:
        config: Name or path of a training config.
        overrides: ``key=value``.
        gpus: Processes to plan for; None takes ``--nproc_per_node`` of the config's launch line, else 1.
        leakage: File for the list of what training and validation data have in common; None writes none.

    Raises:
        MedtuneError: If the config cannot be read or its model cannot be built. Other problems are listed in the
            plan's ``problems``, so that one call shows all of them.
    """
    settings = load_config(config, TrainConfig, overrides)
    world = gpus or _launched_processes(resolve_path(config))
    if world < 1:
        raise ConfigError(f"--gpus must be at least 1, got {world}")
    result = Plan()
    transform = _try(lambda: instantiate(settings.transform), result.problems)
    objective: Objective = instantiate(settings.objective)
    model = _meta_model(settings)
    objective.attach(load_companions(objective.companions(), result.problems))
    objective.bind(model, transform or _stand_in(), settings.seed)
    result.problems += model.missing
    members = set_aside_frozen(model.parts(), settings.frozen, settings.trainable)
    parts = TrainedParts(model, objective, {**members, **objective.parts()})
    stages = objective.stages(tuple(settings.trainable), settings.epochs, settings.max_steps)
    _try(lambda: check_rates(settings.learning_rates, stages, parts, objective.parts()), result.problems)
    _try(lambda: check_loggers(settings), result.problems)
    if settings.feature_cache is not None and transform is not None:
        _try(lambda: check_frozen(stages, parts, transform), result.problems)
    if model.family.about:
        result.sections.append(("Model", _model_text(settings, model, transform)))
    for stage in stages:
        result.sections.append((f"Parts in stage {stage.name}", parts.table(parts.known(stage.trainable))))
    data = _try(lambda: _measure(settings, objective, transform, stages), result.problems) if transform else None
    result.sections.append(("Data", _data_text(settings, data, transform, world, stages, model)))
    if data is not None:
        result.problems += _too_long(model, data)
        compared = _try(lambda: compare_splits(settings, leakage), result.problems)
        result.sections.append(("Training and validation", compared or "have something in common that is not allowed"))
    result.memory = _memory(settings, parts, stages, data, world, transform)
    title = "Memory on the GPU" if world == 1 else f"Memory on each of {world} GPUs"
    result.sections.append((title, _memory_text(settings, data, result.memory, model.reads_text, _tokens(model, None))))
    references = [one.weights for one in objective.companions().values() if one.is_reference and one.weights]
    for weights in filter(None, [settings.checkpoint, *references]):
        _try(lambda weights=weights: _check_base(weights, model), result.problems)
    if settings.checkpoint and Path(settings.checkpoint).exists():  # else the base is the problem
        _try(lambda: adapter_tensors(settings, model), result.problems)
    result.problems += _obstacles(settings, world, sum(result.memory.values()))
    return result


def _model_text(config: TrainConfig, model: Any, transform: Any) -> str:
    """What a model that was built from a folder is, and in which format its texts are written."""
    count = sum(parameter.numel() for parameter in model.parameters())
    lines = [f"{model.family.about}; {count / 1e6:,.0f} M parameters", f"from {config.checkpoint}"]
    template = getattr(transform, "template", None)
    if template is not None:
        lines.append(f"chat format {template.name}" + (", with a system message" if template.default_system else ""))
    return "\n".join(lines)


def _launched_processes(path: Path) -> int:
    """The number of processes in the first launch line of a config's header that does not run ``prepare.py``."""
    lines = path.read_text(encoding="utf-8").splitlines()
    launch = next((line for line in lines if "tune run" in line and "prepare.py" not in line), "")
    found = re.search(r"--nproc[-_]per[-_]node[ =](\d+)", launch)
    return int(found[1]) if found else 1


def _try(build: Any, problems: list[str]) -> Any:
    try:
        return build()
    except (MedtuneError, OSError) as error:
        problems.append(str(error))
        return None


def _stand_in() -> Any:
    """The attributes of a transform that an objective reads, for the case that the tokenizer is absent."""
    return SimpleNamespace(placeholder_text="x", placeholder_id=0, image_id=0, pad_id=0, stop_ids=[])


def _meta_model(config: TrainConfig) -> Trainable:
    with training.set_default_dtype(DTYPES[config.dtype]), torch.device("meta"):
        return instantiate(config.model)


def _measure(config: TrainConfig, objective: Objective, transform: Any, stages: Sequence[Stage]) -> Data:
    source = instantiate(config.dataset)
    seen: Any = _Spread(source, MEASURED_ROWS)
    found = preflight(
        seen,
        transform,
        lambda: [objective.items(seen, None, stage) for stage in stages],
        config.on_error,
        progress=False,
        seed=config.seed,
    )
    return Data(len(source), found)


def _data_text(
    config: TrainConfig, data: Data | None, transform: Any, world: int, stages: list[Stage], model: Any
) -> str:
    batch = config.batch_size * config.gradient_accumulation_steps * world
    shape = f"{config.batch_size} x {config.gradient_accumulation_steps} accumulated x {world} processes"
    lines = [f"samples per step     {batch} ({shape})"]
    if data is None:
        reason = "not measured: the tokenizer is not here" if transform is None else "not found"
        return "\n".join([f"training rows        {reason}", *lines])
    checked = data.checked
    clock = Progress(tuple(stages), len(BatchPlan([1] * data.rows, batch, config.seed)))
    lengths = f"mean {data.mean_tokens:.0f}, longest {checked.longest.max()}"
    kind = ", those of images among them" if model.images_as_tokens else " of text; images add none"
    usable = f"({len(checked.lengths):,} rows measured, {len(checked.problems)} unusable)"
    steps = ", ".join(f"{stage.name} {clock.length(index):,}" for index, stage in enumerate(stages))
    read = [
        f"tokens per sample    {lengths} {usable}",
        f"tiles per sample     mean {checked.tiles.mean():.1f}, most {checked.most_tiles.max()}",
        f"tokens per step      about {batch * data.mean_tokens:,.0f}{kind}",
    ]
    if model.images_as_tokens and transform is not None:
        per_tile = transform.tokens_per_tile
        most = f"mean {checked.tiles.mean() * per_tile:.0f}, most {checked.most_tiles.max() * per_tile}"
        read.insert(1, f"tokens of images     {most}; at most {transform.tiler.max_tiles * per_tile} an image")
    if not model.image_size:
        read = [read[0], f"tokens per step      about {batch * data.mean_tokens:,.0f}"]
    if not model.reads_text:
        read = [f"images per sample    1, {model.image_size} px wide {usable}"]
    lines += [*read, f"steps                {steps}; {clock.total:,} in all"]
    if config.feature_cache is not None and transform is not None:
        tiles = data.rows * float(checked.tiles.mean())
        size = tiles * transform.tokens_per_tile * model.embed_dim * DTYPES[config.dtype].itemsize
        where = f"of the model's features below {config.feature_cache}"
        lines.append(f"feature cache        at most {readable_size(size)} {where}")
    return "\n".join([f"training rows        {data.rows:,}", *lines])


def _too_long(model: Any, data: Data) -> list[str]:
    """A sentence if the transform allows samples that are longer than the model reads."""
    longest = int(data.checked.longest.max(initial=0))
    if not model.longest_text or longest <= model.longest_text:
        return []
    return [
        f"the longest sample has {longest} tokens and the model reads at most {model.longest_text}; set transform."
        f"max_seq_len={model.longest_text}, so that such samples are named, or take a model for longer texts"
    ]


def _argument(component: Component, name: str, otherwise: int) -> int:
    """A component's argument from the config, else the builder's default."""
    parameter = inspect.signature(import_path(component.path)).parameters.get(name)
    default = otherwise if parameter is None or parameter.default is inspect.Parameter.empty else parameter.default
    return int(component.get(name, default))


def _largest_batch(config: TrainConfig, model: Any, data: Data | None, transform: Any) -> BatchShape:
    if not model.reads_text:
        return BatchShape(config.batch_size, 0, 1, 1, model.image_size)
    if not model.image_size:  # it reads text alone
        return BatchShape(config.batch_size, _tokens(model, data), 0, 0, 0)
    if transform is None:
        size = _argument(config.transform, "image_size", 0) or model.image_size
        most = _argument(config.transform, "max_num_tiles", 1)
    else:
        size, most = transform.tiler.size, transform.tiler.max_tiles
    tiles = most if data is None else max(1, int(data.checked.most_tiles.max()))
    shape = BatchShape(config.batch_size, ASSUMED_TOKENS, -(-tiles // most), min(tiles, most), size)
    with training.set_default_dtype(DTYPES[config.dtype]):
        return replace(shape, tokens=_tokens(model, data, 0 if data is not None else model.image_tokens(shape)))


def _tokens(model: Any, data: Data | None, of_images: int = 0) -> int:
    """Tokens of the longest row: the data's, or assumed ones and those of images; no more than the model reads."""
    tokens = ASSUMED_TOKENS + of_images if data is None else int(data.checked.longest.max())
    return min(tokens, model.longest_text or tokens)


def _memory(
    config: TrainConfig, parts: TrainedParts, stages: Iterable[Stage], data: Data | None, world: int, transform: Any
) -> dict[str, float]:
    """Bytes by item for the stage that needs the most; see :mod:`medtune.training.memory`."""
    model: Any = parts.model
    objective: Any = parts.objective
    dtype, shape = DTYPES[config.dtype], _largest_batch(config, model, data, transform)
    shape = replace(shape, batch=shape.batch * objective.rows)
    chunk = _argument(config.objective, "chunk_tokens", 0) * objective.rows
    fixed = {"weights": sum(memory.tensor_bytes(p) for p in parts.named().values()) / world}
    if tables := memory.table_bytes(model):
        fixed["tables"] = tables
    if objective.companions():
        fixed["companions"] = _companion_bytes(objective, fixed["weights"])
    if world > 1:
        fixed["gathered layers"] = memory.gathered_bytes(model)
    if model.vocab_size:
        fixed["logits"] = memory.logits_bytes(shape.batch * shape.tokens, chunk, model.vocab_size, dtype)
    per_element = memory.optimizer_bytes_per_element(config.optimizer, dtype)
    largest: dict[str, float] = {}
    for stage in stages:
        trained = parts.select(stage.trainable)
        proxied = any(name in trained for name, _ in parts.objective.named_parameters())
        kept = _activations(config, model, shape, set(trained), proxied)
        need = {
            **fixed,
            "gradients": sum(p.numel() * p.element_size() for p in trained.values()) / world,
            "optimizer": sum(p.numel() for p in trained.values()) * per_element / world,
            "activations": kept,
        }
        largest = max(largest, need, key=lambda items: sum(items.values()))
    largest["allowance"] = memory.CONTEXT_BYTES + memory.FRAGMENTATION * sum(largest.values())
    order = ("weights", "tables", "companions", "gradients", "optimizer", "gathered layers", "activations", "logits",
             "allowance")  # fmt: skip
    return {item: largest[item] for item in order if item in largest}


def _companion_bytes(objective: Objective, weights: float) -> float:
    """Bytes of the companions: of the models that were loaded, and of references, as large as the trained model."""
    found = (p for model in objective.beside.values() for p in model.parameters())
    references = sum(companion.is_reference for companion in objective.companions().values())
    return sum(memory.tensor_bytes(p) for p in found) + references * weights


def _activations(config: TrainConfig, model: Any, shape: BatchShape, trained: set[str], proxied: bool) -> float:
    with warnings.catch_warnings(), training.set_default_dtype(DTYPES[config.dtype]):
        warnings.simplefilter("ignore")
        found = memory.count_activations(model, shape, trained, proxied)
    if config.activation_offloading:
        return max(found.inside, default=0)
    return found.checkpointed() if config.activation_checkpointing else found.total


def _memory_text(
    config: TrainConfig,
    data: Data | None,
    items: dict[str, float],
    reads_text: bool = True,
    assumed: int = ASSUMED_TOKENS,
) -> str:
    lines = [f"{item:<16}{size / GB:>9.2f} GB" for item, size in items.items()]
    lines.append(f"{'all':<16}{sum(items.values()) / GB:>9.2f} GB")
    how = "on" if config.activation_checkpointing else "off"
    samples = f"{assumed} tokens (assumed)" if data is None else "the longest samples"
    samples = samples if reads_text else "images"
    lines.append(
        f"{config.dtype}, activation checkpointing {how}, batch {config.batch_size} of {samples}; an estimate, whose "
        "formulas are in medtune/training/memory.py"
    )
    return "\n".join(lines)


def _check_base(weights: str, model: Any) -> None:
    """Check base weights by the headers of their files, and the model that ``config.json`` describes."""
    if not Path(weights).exists():
        raise ModelError(
            f"the base weights are not here: checkpoint={weights} does not exist (the config's header has the download "
            "line)"
        )
    check_weights(weights, model)


def _obstacles(config: TrainConfig, world: int, needed: float) -> list[str]:
    """Sentences about what the config needs and this machine does not have."""
    found = []
    if problem := unfit(config.optimizer, world):
        found.append(problem)
    if world > 1 and config.model.get("double_quant") is False:
        found.append("model.double_quant: false is for one process only; leave it out, or start one process")
    if config.activation_offloading and config.device == "cpu":
        found.append("activation_offloading needs a GPU, and device=cpu")
    if torch.cuda.is_available() and config.device != "cpu":
        there = torch.cuda.get_device_properties(0).total_memory
        if needed > there:
            found.append(
                f"about {needed / GB:.0f} GB are needed on each GPU and this one has {there / GB:.0f} GB; try "
                "activation_checkpointing=true, a smaller batch_size, LoRA, or more GPUs"
            )
    return found
