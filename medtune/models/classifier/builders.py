"""Task-specific models built for a prepared file, and read from the folder of a run."""

import json
from pathlib import Path
from typing import Any

import torch

from medtune.data.opening import refuse_special
from medtune.errors import ConfigError, DataError, ModelError
from medtune.models.classifier import timm_models
from medtune.models.classifier.sets import LabelledSet, label_sets
from medtune.models.classifier.task_model import TaskModel
from medtune.models.weights import load_weights


def task_model(
    sets: str,
    architecture: str = "vit_base_patch16_224",
    image_size: int = 224,
    mean: tuple[float, ...] = (0.5,) * 3,
    std: tuple[float, ...] = (0.5,) * 3,
    pretrained: str | None = None,
    download: bool = False,
    **arguments: Any,
) -> TaskModel:
    """Build a classifier for the sets of a prepared file.

    Args:
        sets: path of JSON Lines with classification questions; the head has a logit for each of their classes.
        architecture: name of any timm model.
        image_size: side of its images in pixels; timm models with a fixed input size are built for this size.
        mean: per channel, subtracted from pixels.
        std: per channel, divided by.
        pretrained: a local safetensors file of timm; its head is not loaded.
        download: download timm's pretrained weights from the Hugging Face hub. Only this option opens a network
            connection.
        arguments: further arguments of timm's model, for example ``depth: 4``.

    Raises:
        ConfigError: if timm does not have the model or cannot build it with these arguments, or if both
            ``pretrained`` and ``download`` are given.
        DataError: if the classes cannot be read.
        ModelError: if the pretrained weights are missing or do not fit.
    """
    if pretrained is not None and download:
        raise ConfigError("pretrained names a file and download asks for another; leave one out")
    planned = torch.empty(0).is_meta
    missing = []
    try:
        known = label_sets(sets)
    except DataError as error:
        if not planned:
            raise
        missing.append(str(error))
        known = {"unknown": LabelledSet("multi_class", ("unknown", "unknown too"))}
    model = TaskModel(architecture, known, image_size, mean, std, arguments)
    if pretrained is not None and not Path(pretrained).is_file():
        missing.append(f"the pretrained weights are not here: {pretrained} (the config's header has the download line)")
    model.missing = tuple(missing)
    if planned:
        return model
    if model.missing:
        raise ModelError(model.missing[0])
    if pretrained is not None:
        print(timm_models.take_up(model.encoder, timm_models.read(pretrained), pretrained))
    elif download:
        state = timm_models.download(architecture, image_size, arguments)
        print(timm_models.take_up(model.encoder, state, f"timm's {architecture}"))
    return model


def load_tsm(path: str | Path) -> TaskModel:
    """Read a trained task-specific model, frozen and in evaluation mode.

    Args:
        path: the ``weights`` folder of a ``tsm`` run.

    Raises:
        ModelError: if the folder does not hold such a model, or its weights are damaged.
    """
    file = Path(path) / "config.json"
    refuse_special(file, ModelError)
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        sets = {entry["name"]: LabelledSet(entry["task"], tuple(entry["classes"])) for entry in config["sets"]}
        built = TaskModel(
            config["architecture"], sets, config["image_size"], config["mean"], config["std"], config["arguments"]
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else error
        raise ModelError(
            f"{path} holds no task-specific model ({what}); name the weights folder of a tsm run"
        ) from error
    built.load_state_dict(load_weights(path, built))
    return built.eval().requires_grad_(False)
