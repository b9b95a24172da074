"""From a server's config to a loaded model, and to an estimate of its memory without loading it."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torchtune import training

from medtune.config import instantiate, load_config
from medtune.data.crops import changed_images
from medtune.errors import ConfigError, ModelError
from medtune.generation.answering import DTYPES, choose_device
from medtune.generation.engine.continuous import Engine
from medtune.generation.exemplars import ExemplarSource
from medtune.generation.interfaces import AnswerModel
from medtune.generation.named_model import check_exported, kind_of
from medtune.generation.prompt_extension import PromptExtension
from medtune.generation.run_model import read_run
from medtune.models.common.names import is_adapter_key
from medtune.models.from_checkpoint import component_of, is_known
from medtune.models.published_config import CONFIG_NAME, builder_of
from medtune.models.weight_files import read_json
from medtune.models.weights import load_weights
from medtune.serving.adapters import open_adapters
from medtune.serving.config import ServeConfig
from medtune.serving.images import ReceivedImages
from medtune.serving.prompts import CountedPrompts, Models, OneModel, Served


@dataclass(frozen=True)
class Source:
    """A model that can be loaded.

    Attributes:
        name: A short name.
        model: Component of its builder.
        transform: Component of its transform.
        checkpoint: Its weights.
        dtype: Type of weights and caches, ``fp32`` or ``bf16``.
        center_crop: The share of an image's sides that is kept.
        pad_to_square: The side of the square that images are padded to, or None.
        exemplars: Of a VITask run, or None.
    """

    name: str
    model: Mapping[str, Any]
    transform: Mapping[str, Any]
    checkpoint: str
    dtype: str
    center_crop: float = 1.0
    pad_to_square: int | None = None
    exemplars: ExemplarSource | None = None


def source_of(config: ServeConfig) -> Source:
    """Find out what a config serves; no weights are read.

    Raises:
        ConfigError: If its source is not a model of medtune's.
    """
    found = _found(config)
    return Source(
        config.name or found.name,
        found.model,
        found.transform,
        found.checkpoint,
        config.dtype or found.dtype,
        found.center_crop if config.center_crop is None else config.center_crop,
        found.pad_to_square if config.pad_to_square is None else config.pad_to_square,
        found.exemplars,
    )


def _found(config: ServeConfig) -> Source:
    if config.source is None:
        assert config.model is not None and config.transform is not None and config.checkpoint is not None
        name = config.model.path.rpartition(".")[2]
        return Source(name, config.model, config.transform, config.checkpoint, "bf16")
    folder = Path(config.source).expanduser()
    kind = kind_of(config.source)
    if kind == "run":
        run = read_run(folder)
        name = folder.resolve().name
        return Source(name, run.model, run.transform, run.checkpoint, run.dtype, run.center_crop, run.pad_to_square)
    if kind == "exported":
        check_exported(folder)
        return _exported(folder)
    return _predicting(config.source)


def _exported(folder: Path) -> Source:
    """A folder in the published layout: builder and transform are those of the model that its config.json describes."""
    config = read_json(folder / CONFIG_NAME)
    builder = builder_of(config)
    if builder is None and is_known(config):
        model = component_of(folder, config)
        transform = {"_component_": "medtune.models.from_checkpoint_transform", "path": str(folder)}
        return Source(folder.resolve().name, model, transform, str(folder), "bf16")
    if builder is None:
        raise ConfigError(
            f"no builder is known for the model in {folder}; serve it by a config with model, transform and checkpoint "
            "(see serve/mini), or serve the run that it was exported from"
        )
    package, _, name = builder.rpartition(".")
    module = importlib.import_module(package)
    transforms = [one for one in module.__all__ if one.endswith("_transform")]
    fits = [one for one in transforms if name.startswith(one.removesuffix("_transform"))]
    if len(fits) != 1:
        raise ConfigError(f"{folder} is a model of {builder}, whose transform is one of {', '.join(transforms)}")
    model = {"_component_": builder, **({"layout": "hf"} if _takes_layout(getattr(module, name)) else {})}
    transform = {"_component_": f"{package}.{fits[0]}", "path": str(folder)}
    return Source(folder.resolve().name, model, transform, str(folder), "bf16")


def _takes_layout(builder: Any) -> bool:
    return "layout" in builder.__annotations__


def _predicting(name: str) -> Source:
    """The model of a predict config."""
    from medtune.recipes.predict import PredictConfig

    config = load_config(name, PredictConfig)
    if config.model is None or config.transform is None or config.checkpoint is None:
        raise ConfigError(f"{name}: a backend answers there; only medtune's own models can be served")
    crop, side = config.questions.get("center_crop", 1.0), config.questions.get("pad_to_square")
    label = Path(name).stem if name.endswith(".yaml") else name.rpartition("/")[2]
    return Source(label, config.model, config.transform, config.checkpoint, config.dtype, crop, side, config.exemplars)


def load(config: ServeConfig) -> Served:
    """Load the model and its adapters.

    Raises:
        MedtuneError: If something does not fit.
    """
    source = source_of(config)
    device, dtype = choose_device(config.device), DTYPES[source.dtype]
    model = _loaded(source, device, dtype)
    transform = CountedPrompts(instantiate(source.transform))
    models, extension = _models(config, source, model, transform, device)
    images = ReceivedImages(config.limits.pixels)

    def open_engine() -> Engine:
        return Engine(
            model,
            transform,
            slots=config.slots,
            max_new_tokens=config.max_new_tokens,
            device=device,
            dtype=dtype,
            extension=extension,
        )

    return Served(
        models,
        open_engine,
        transform,
        images,
        changed_images(images, source.center_crop, source.pad_to_square),
    )


def _models(
    config: ServeConfig, source: Source, model: Any, transform: Any, device: torch.device
) -> tuple[Models, PromptExtension | None]:
    """The names of what is served, and what the engine needs to tell them apart."""
    if not config.adapters:
        return OneModel(source.name), source.exemplars.open(transform, device) if source.exemplars else None
    if source.exemplars:
        raise ConfigError("adapters and exemplars cannot be served together; leave one out")
    return open_adapters(model, config.adapters, config.router, config.threshold, config.fallback)


def _loaded(source: Source, device: torch.device, dtype: torch.dtype) -> AnswerModel:
    """The model with its weights. A base in 4 bits has adapters of its own, which a bank switches off."""
    with training.set_default_dtype(dtype), torch.device(device):
        built = instantiate(source.model)
    missing, _ = built.load_state_dict(load_weights(source.checkpoint, built), strict=False)
    lacking = [name for name in missing if not is_adapter_key(name)]
    if lacking:
        raise ModelError(f"{source.checkpoint} lacks {len(lacking)} tensors of the model (first: {lacking[0]})")
    return built


def separator_of(transform: Any) -> str:
    """Return the text that stands between an image and the text after it in a model's chat format."""
    template = getattr(transform, "template", None)  # Llama-3.2-Vision has none there, and no separator
    return "" if template is None else str(template.image_separator)


def built_on_meta(source: Source) -> Any:
    """Return the model without storage."""
    with training.set_default_dtype(DTYPES[source.dtype]), torch.device("meta"):
        return instantiate(source.model)
