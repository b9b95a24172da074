"""``medtune export`` of a plain model: its weights in the other published layout, or under torchtune's names."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from medtune.config import Component, check_component, import_path, instantiate
from medtune.errors import ConfigError, ModelError
from medtune.models.common.family import StateDict
from medtune.models.from_checkpoint import component_of, is_known
from medtune.models.published_config import CONFIG_NAME, builder_of
from medtune.models.weight_files import SINGLE_NAME, read_json
from medtune.models.weights import load_weights, save_hf, save_tensors


def is_plain(source: Path) -> bool:
    """Whether a path holds the weights of a model, and is neither a run nor a training checkpoint."""
    if source.is_file():
        return source.suffix == ".safetensors"
    special = ("config.yaml", "state.json", "adapter_config.json")
    return not any((source / name).is_file() for name in special) and any(source.glob("*.safetensors"))


def read_plain(source: Path, model: str | None) -> tuple[StateDict, Any]:
    """Read a plain model.

    Args:
        source: see :func:`is_plain`.
        model: the builder: a dotted path, or a mapping in YAML with its arguments
            (``{_component_: ..., layout: hf}``). None finds it by ``config.json``; a builder of several layouts then
            gets the one of transformers.

    Returns:
        The weights in torchtune's names and the types of the files, and the model on the meta device.

    Raises:
        MedtuneError: if the builder cannot be found, or the weights do not fit it.
    """
    component = _named(model) if model else _found(source)
    check_component(component, "--model")
    with torch.device("meta"):
        built = instantiate(component)
    return load_weights(source, built), built


def writer(state: StateDict, model: Any, form: str, source: Path) -> Callable[[Path], object]:
    """Return the function that fills a folder.

    Raises:
        ModelError: for ``peft``: a plain model has no adapter.
    """
    if form == "peft":
        raise ModelError(f"{source} is a plain model without an adapter; use --to hf or --to torchtune")
    if form == "torchtune":
        return lambda folder: save_tensors(state, folder / SINGLE_NAME)
    return lambda folder: save_hf(state, model.family, folder, source if source.is_dir() else source.parent)


def _named(text: str) -> Component:
    try:
        given = OmegaConf.to_container(OmegaConf.create(text)) if text.lstrip().startswith("{") else None
    except Exception as error:  # of YAML and OmegaConf
        raise ConfigError(f"--model {text} is not a mapping in YAML ({' '.join(str(error).split())})") from error
    if given is None:
        return Component(_component_=text)
    if not isinstance(given, Mapping) or "_component_" not in given:
        raise ConfigError(f"--model {text}: a mapping needs _component_, the dotted path of the builder")
    return Component({str(key): value for key, value in given.items()})


def _found(source: Path) -> Component:
    file = (source if source.is_dir() else source.parent) / CONFIG_NAME
    config = read_json(file) if file.is_file() else {}
    path = builder_of(config) if config else None
    if path is None and is_known(config):
        return Component(component_of(file.parent, config))
    if path is None:
        raise ModelError(
            f"{source} is not a run, and no builder is known for this model; name it: --model "
            "medtune.models.internvl.internvl2_2b, or --model '{_component_: ..., ARGUMENT: VALUE}'"
        )
    layout = {"layout": "hf"} if "layout" in inspect.signature(import_path(path)).parameters else {}
    return Component(_component_=path, **layout)
