"""Continuing from an adapter: a folder in PEFT's format, or the checkpoint of an earlier run.

The run starts from its base weights (``checkpoint``) with the adapter's tensors in place: the adapters, and what was
fully trained in addition to them. From then on the run's own checkpoints hold these tensors, trained or not.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.optim import Optimizer

from medtune.aliases import canonical
from medtune.config import to_plain
from medtune.data.identity import differences, files_identity
from medtune.errors import CheckpointError, ConfigError, ModelError
from medtune.models.common.family import StateDict
from medtune.models.common.names import expected_shapes, state_dict_names
from medtune.models.lora.peft import WEIGHTS_NAME, load_peft
from medtune.models.lora.peft_config import CONFIG_NAME
from medtune.training import checkpoints, optimization
from medtune.training.config import TrainConfig
from medtune.training.fingerprint import base_fingerprint
from medtune.training.parts import TrainedParts
from medtune.training.parts import canonical as plain_name

# Arguments of a builder that change training and not the model.
_ONLY_IN_TRAINING = ("lora_dropout",)


def adapter_tensors(config: TrainConfig, model: Any) -> StateDict:
    """The tensors that a run starts with in addition to its base weights.

    Args:
        config: ``adapter``, ``checkpoint`` and ``model`` are read.
        model: built with adapters; may live on the meta device.

    Returns:
        State-dict key -> tensor, on the CPU; empty without ``adapter``.

    Raises:
        MedtuneError: if it is no adapter, belongs to another model or to other base weights, or does not fit.
    """
    if config.adapter is None:
        return {}
    source = _source(config.adapter)
    if (source / CONFIG_NAME).is_file():
        return load_peft(source, model)
    _check_run(source, config)
    saved = _read(source, "model")
    if not saved:
        raise CheckpointError(f"adapter: {source} was written before anything of the model was trained")
    keys, shapes = state_dict_names(model), expected_shapes(model)
    for name, value in saved.items():
        if name not in keys or shapes[keys[name]] != value.shape:
            raise ModelError(f"adapter: {source} holds {name} of shape {list(value.shape)}, which the model has not")
    return {keys[name]: value for name, value in saved.items()}


def begun(config: TrainConfig, parts: TrainedParts) -> dict[str, nn.Parameter]:
    """The parameters whose values came from the adapter, by name: checkpoints hold them, whatever is trained."""
    keys = adapter_tensors(config, parts.model)
    if not keys:
        return {}
    named = parts.named()
    names = state_dict_names(parts.model).items()  # type: ignore[arg-type]
    return {plain_name(name): named[plain_name(name)] for name, key in names if key in keys}


def adapter_identity(config: TrainConfig) -> dict[str, str] | None:
    """SHA-256 of the adapter's files, as a part of a run's identity; None without ``adapter``."""
    if config.adapter is None:
        return None
    source = _source(config.adapter)
    names = (CONFIG_NAME, WEIGHTS_NAME) if (source / CONFIG_NAME).is_file() else ("model.safetensors",)
    return files_identity({name: source / name for name in names})


def keep_optimizer(config: TrainConfig, optimizer: Optimizer, trained: Mapping[str, nn.Parameter]) -> None:
    """Take over the optimizer's state of the run that ``adapter`` names; nothing happens without ``keep_optimizer``.

    Args:
        config: ``adapter``, ``keep_optimizer`` and ``optimizer`` are read.
        optimizer: of the first stage.
        trained: its parameters by name.

    Raises:
        ConfigError: if the adapter is not a run's, or its optimizer was another one.
        CheckpointError: if there is no state for a parameter.
    """
    if not config.keep_optimizer:
        return
    source = _source(str(config.adapter))
    if (source / CONFIG_NAME).is_file():
        raise ConfigError(f"keep_optimizer: {source} is a PEFT adapter, which has no optimizer state; name a run")
    values = checkpoints.load_values(source)
    before = values.get("identity", {}).get("optimizer")
    if before != config.optimizer.path:
        raise ConfigError(
            f"keep_optimizer: {source} has the state of {before}, and this run uses {config.optimizer.path}; use the "
            "same, or leave keep_optimizer out"
        )
    tensors = _read(source, "optimizer")
    known = {name.rpartition("|")[0] for name in (*tensors, *values["optimizer_numbers"])}
    missing = sorted(trained.keys() - known)
    if missing:
        raise CheckpointError(
            f"keep_optimizer: {source} has no state for {missing[0]} ({len(missing)} parameters); train the same "
            "parts, or leave keep_optimizer out"
        )
    names = {id(parameter): name for name, parameter in trained.items()}
    optimization.restore_optimizer(optimizer, names, tensors, values["optimizer_numbers"])


@functools.lru_cache(maxsize=8)
def _source(adapter: str) -> Path:
    """The PEFT folder, or the checkpoint's folder; a run's newest whole checkpoint. Found once in a process."""
    path = Path(adapter)
    if (path / CONFIG_NAME).is_file():
        return path
    if path.name.startswith("step_") and (path / "state.json").is_file():
        problem = checkpoints.torn(path)
        if problem:
            raise CheckpointError(f"adapter: checkpoint {path} is torn ({problem}); name another, or the run's folder")
        return path
    newest = checkpoints.newest_checkpoint(path / "checkpoints", print)
    if newest is not None:
        return newest
    whole = " It holds complete weights: set checkpoint to it and leave adapter out." if _has_weights(path) else ""
    raise ConfigError(
        f"adapter: {adapter} is neither a folder in PEFT's format nor a run or its checkpoints/step_N.{whole}"
    )


def _has_weights(path: Path) -> bool:
    return any(path.glob("*.safetensors")) or path.suffix == ".safetensors"


def _check_run(step: Path, config: TrainConfig) -> None:
    """Check that a checkpoint's run had the same base weights and the same builder with the same arguments."""
    known = checkpoints.load_values(step).get("identity", {})
    if known.get("weights") not in (None, base_fingerprint(config.checkpoint)):
        raise ModelError(f"adapter: {step} was trained on other base weights than checkpoint={config.checkpoint}")
    before, now = (
        {key: value for key, value in canonical(model).items() if key not in _ONLY_IN_TRAINING}
        for model in (known.get("model", {}), to_plain(config.model))
    )
    differing = differences(before, now) if before else []
    if differing:
        raise ModelError(f"adapter: {step} belongs to another model ({'; '.join(map(str, differing))})")


def _read(step: Path, name: str) -> StateDict:
    try:
        return load_file(step / f"{name}.safetensors")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"adapter: cannot read {step / name}.safetensors: {error}") from error
