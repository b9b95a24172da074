"""The config of a training run; one class for every training recipe."""

import importlib.util
import inspect
from dataclasses import dataclass, field
from typing import Any, Literal

from medtune.aliases import resolve_part
from medtune.config import Component, import_path
from medtune.errors import ConfigError


def key(default: object, help: str) -> Any:
    """A config field with a default and a line of help."""
    if isinstance(default, dict | list):
        return field(default_factory=lambda: type(default)(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


@dataclass
class ScheduleConfig:
    """Learning rate over a stage: a linear warm-up, then a schedule of ``kind`` down to ``min_ratio`` of the rate."""

    kind: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = 0
    warmup_ratio: float = 0.0
    min_ratio: float = 0.0

    def __post_init__(self) -> None:
        """Refuse values that no schedule can have."""
        if self.warmup_steps < 0 or not 0 <= self.warmup_ratio < 1 or not 0 <= self.min_ratio <= 1:
            raise ValueError("warmup_steps must be >= 0, warmup_ratio in [0, 1), min_ratio in [0, 1]")


LOSS = "validation_loss"


@dataclass
class QuestionsConfig:
    """A small fixed set of questions that the model answers at each validation."""

    source: Component = field(metadata={"help": "dataset builder of questions, as for predict"})
    protocols: list[str] = key(["open"], "protocols in which the questions are asked")
    limit: int = key(64, "number of questions; drawn once from the whole source, the same in every run")
    batch_size: int = key(16, "prompts answered together")
    max_new_tokens: int = key(32, "longest answer")
    answers: int = key(8, "answers written to metrics.jsonl at each validation; 0 writes none")
    resamples: int = key(300, "bootstrap resamples for each interval")

    def __post_init__(self) -> None:
        """Refuse sizes that no set can have."""
        for name in ("limit", "batch_size", "max_new_tokens", "resamples"):
            if getattr(self, name) < 1:
                raise ValueError(f"questions.{name} must be at least 1, got {getattr(self, name)}")
        if self.answers < 0 or not self.protocols:
            raise ValueError("questions: answers must be at least 0, and protocols must name one")


def _adamw() -> Component:
    return Component(_component_="torch.optim.AdamW", lr=2e-5)


@dataclass
class TrainConfig:
    """Every key of a training run; ``--help`` of a recipe prints them."""

    output_dir: str = field(metadata={"help": "folder of the run: checkpoints, weights, metrics, config"})
    model: Component = field(metadata={"help": "model builder"})
    transform: Component = field(metadata={"help": "tokenizer and image transform"})
    dataset: Component = field(metadata={"help": "training data"})
    objective: Component = field(metadata={"help": "the method"})
    checkpoint: str | None = key(None, "base weights: a folder in HF layout or one safetensors file; null is random")
    adapter: str | None = key(
        None, "adapter to continue from, on top of checkpoint: a PEFT folder, or a run or its checkpoints/step_N"
    )
    keep_optimizer: bool = key(False, "take over the optimizer's state of the run that `adapter` names")
    dataset_val: Component | None = key(None, "validation data for loss, best weights and early stopping")
    optimizer: Component = field(default_factory=_adamw, metadata={"help": "any torch optimizer or bitsandbytes'"})
    learning_rates: dict[str, float] = key(
        {},
        "learning rates of parts of the model (see `medtune plan`) and of the method; adapter means all adapter parts",
    )
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig, metadata={"help": "learning rate over each stage"})
    trainable: list[str] = key(["vision", "projection", "fusion"], "parts of the model that are trained")
    frozen: list[str] = key(
        [], "parameters of trained parts that are not trained, * is any text, e.g. [decoder.layers.0.*]"
    )
    epochs: int = key(1, "epochs of the main stage")
    max_steps: int | None = key(None, "steps of the main stage; takes precedence over epochs")
    batch_size: int = key(2, "samples per process and micro-batch")
    gradient_accumulation_steps: int = key(1, "micro-batches per optimizer step")
    clip_grad_norm: float | None = key(None, "largest gradient norm over all trained parameters")
    seed: int = key(0, "seed of all randomness")
    device: Literal["auto", "cpu", "cuda"] = key("auto", "auto takes cuda if there is a GPU")
    dtype: Literal["fp32", "bf16"] = key(
        "bf16", "type of weights and activations; the method's own parameters stay fp32"
    )
    activation_checkpointing: bool = key(False, "recompute layers in the backward pass")
    activation_offloading: bool = key(False, "keep saved activations in host memory")
    compile: bool = key(False, "torch.compile for each layer")
    num_workers: int = key(0, "data worker processes; the result does not depend on the number")
    feature_cache: str | None = key(
        None, "folder for the features of a frozen image encoder, so that each image is encoded once"
    )
    preflight_cache: str | None = key(
        "auto",
        "folder for the result of the data check; auto: $XDG_CACHE_HOME/medtune/preflight; null: it is not kept",
    )
    allow_leakage: list[str] = key(
        [], "kinds of leakage between training and validation data that are accepted; see docs/checking.md"
    )
    on_error: Literal["raise", "skip"] = key(
        "raise", "raise: a sample that cannot be used stops the run; skip: it is left out, counted and listed"
    )
    bucket: bool = key(
        True, "put samples of similar length into a step, except labelled images, whose length reveals the label"
    )
    sampling: Literal["uniform", "balanced"] = key(
        "uniform", "balanced draws samples with replacement, those with rare words more often"
    )
    save_every_steps: int | None = key(
        None, "checkpoint every N steps (one is always written at the end and on SIGTERM)"
    )
    keep_checkpoints: int = key(2, "number of newest checkpoints to keep")
    validate_every_steps: int | None = key(None, "validation every N steps; null: at the end of each stage")
    questions: QuestionsConfig | None = key(None, "a small question set that is answered at each validation")
    monitor: str = key(
        LOSS, "metric that decides the best weights and early stopping, e.g. validation_loss, open/accuracy_macro"
    )
    monitor_direction: Literal["auto", "higher", "lower"] = key("auto", "whether higher or lower is better")
    early_stopping_patience: int | None = key(None, "stop after N validations without a better value of `monitor`")
    resume: Literal["auto", "never", "must"] = key("auto", "continue from the newest whole checkpoint of output_dir")
    export: Literal["hf", "torchtune", "peft", "none"] = key(
        "hf", "weights written at the end: merged, in either layout; peft: the adapter alone, for PEFT and vLLM"
    )
    loggers: list[Component] = key([], "torchtune metric loggers, in addition to metrics.jsonl")
    log_every_steps: int = key(1, "steps between log lines")

    def __post_init__(self) -> None:
        """Refuse values that no run can have, naming the key."""
        self.trainable = [resolve_part(part) for part in self.trainable]
        self.learning_rates = {resolve_part(part): rate for part, rate in self.learning_rates.items()}
        for name in ("batch_size", "gradient_accumulation_steps", "log_every_steps", "keep_checkpoints"):
            _at_least(self, name, 1)
        for name in ("max_steps", "save_every_steps", "validate_every_steps", "early_stopping_patience", "epochs"):
            _at_least(self, name, 1)
        _at_least(self, "num_workers", 0)
        if self.clip_grad_norm is not None and self.clip_grad_norm <= 0:
            raise ValueError(f"clip_grad_norm must be positive, got {self.clip_grad_norm}")
        if self.adapter is not None and self.checkpoint is None:
            raise ValueError("adapter needs checkpoint, the base weights that it was trained on")
        if self.export == "peft" and self.checkpoint is None:
            raise ValueError("export: peft needs checkpoint, the base weights that the adapter belongs to")
        if self.keep_optimizer and self.adapter is None:
            raise ValueError("keep_optimizer needs adapter, the run whose optimizer it continues")
        if self.activation_offloading and not self.activation_checkpointing:
            raise ValueError("activation_offloading needs activation_checkpointing: true")


def _at_least(config: TrainConfig, name: str, least: int) -> None:
    value = getattr(config, name)
    if value is not None and value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def require_objective(config: TrainConfig, wanted: type) -> None:
    """Refuse a config of another method than the recipe's; subclasses and old names of the method are accepted.

    Raises:
        ConfigError: Naming both.
    """
    found = import_path(config.objective.path, "objective")
    if not (isinstance(found, type) and issubclass(found, wanted)):
        raise ConfigError(f"objective: this recipe trains {wanted.__name__}, not {config.objective.path}")


LOGGER_PACKAGES = {
    "WandBLogger": "wandb",
    "CometLogger": "comet_ml",
    "MLFlowLogger": "mlflow",
    "TensorBoardLogger": "tensorboard",
}
"""torchtune's metric loggers -> the package that each imports only when it is created."""


def check_loggers(config: TrainConfig) -> None:
    """Refuse a metric logger whose package is missing.

    Raises:
        ConfigError: Naming the logger and how to install its package.
    """
    for number, logger in enumerate(config.loggers):
        made = import_path(logger.path, f"loggers.{number}")
        for kind in inspect.getmro(made) if isinstance(made, type) else ():
            package = LOGGER_PACKAGES.get(kind.__name__)
            if package is not None and importlib.util.find_spec(package) is None:
                raise ConfigError(
                    f"loggers.{number}: {logger.path} needs the package {package}, which is not installed: "
                    f"pip install {package}, or leave the logger out"
                )
