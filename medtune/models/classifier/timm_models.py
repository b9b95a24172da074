"""The interface to timm: build a classifier, and load pretrained weights without their head.

timm is imported inside functions, because the import takes seconds and most of medtune does not need it.
"""

import difflib
from collections.abc import Iterable
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from medtune.data.opening import refuse_special
from medtune.errors import ConfigError, ModelError
from medtune.models.common.family import StateDict

# Arguments with which timm reads weights itself, from a pickle or from the network.
_READS_WEIGHTS = ("checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")


def build(architecture: str, classes: int, image_size: int, arguments: dict[str, Any]) -> Any:
    """Build a classifier with random weights.

    Args:
        architecture: name of any timm model.
        classes: number of outputs of its head.
        image_size: side of its images in pixels; timm models with a fixed input size are built for this size.
        arguments: further arguments of timm's model.

    Raises:
        ConfigError: for an unknown name, arguments that the model rejects, or a size that is not a multiple of its
            patches.
    """
    import timm

    refused = [name for name in _READS_WEIGHTS if name in arguments]
    if refused:
        raise ConfigError(
            f"{refused[0]} is no argument of a task-specific model: weights are read from safetensors only; name them "
            "under pretrained of the builder"
        )
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"timm has no model {architecture!r}{hint}")
    if arguments.get("img_size", image_size) != image_size:
        raise ConfigError(f"img_size {arguments['img_size']} is not image_size {image_size}; leave img_size out")
    try:
        model = timm.create_model(
            architecture, pretrained=False, num_classes=classes, **{**_sized(architecture, image_size), **arguments}
        )
    except Exception as error:  # timm's models raise many kinds of errors
        raise ConfigError(f"timm cannot build {architecture} for {image_size} px with {arguments}: {error}") from error
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    if patch is not None and any(image_size % side for side in patch):
        raise ConfigError(f"image_size {image_size} cannot be cut into patches of {'x'.join(map(str, patch))} pixels")
    return model


def _sized(architecture: str, image_size: int) -> dict[str, int]:
    """``img_size`` for a model that timm builds for one input size; nothing for other models."""
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(architecture)
    return {"img_size": image_size} if config is not None and config.fixed_input_size else {}


def read(path: str) -> StateDict:
    """Read the weights of a local file.

    Raises:
        ModelError: if it is damaged or not a safetensors file.
    """
    refuse_special(path, ModelError)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} cannot be read as safetensors ({error}); download it again") from error


def download(architecture: str, image_size: int, arguments: dict[str, Any]) -> StateDict:
    """Pretrained weights of timm, downloaded from the Hugging Face hub or found in its cache.

    Raises:
        ModelError: if they cannot be downloaded.
    """
    import timm

    try:
        fetched = timm.create_model(architecture, pretrained=True, **{**_sized(architecture, image_size), **arguments})
    except Exception as error:  # network, hub and cache fail in many ways
        raise ModelError(
            f"timm's weights of {architecture} could not be fetched ({error}); download them elsewhere and name the "
            "file under pretrained"
        ) from error
    return dict(fetched.state_dict())


def take_up(encoder: nn.Module, state: StateDict, where: str) -> str:
    """Load everything except the head.

    The head stays random: a head with the same number of classes need not have the same classes.

    Args:
        encoder: a model of timm.
        state: the weights, in timm's names.
        where: description of the weights, for messages.

    Returns:
        A line that says what was loaded.

    Raises:
        ModelError: if tensors are missing, left over or of another size.
    """
    current = encoder.state_dict()
    head = tuple(f"{name}." for name in _head_names(encoder))
    body = {name: value for name, value in current.items() if not name.startswith(head)}
    tables = {name for name, _ in encoder.named_buffers()}
    wrong = [name for name, value in body.items() if name not in state or state[name].shape != value.shape]
    wrong += [name for name in state if name not in current and name not in tables and not name.startswith(head)]
    if wrong:
        raise ModelError(
            f"{where} does not fit {type(encoder).__name__}: {len(wrong)} tensors are missing, left over or of another "
            f"size ({some(wrong)}); architecture, image_size and arguments must be those of the weights"
        )
    encoder.load_state_dict({name: state[name] for name in body}, strict=False)
    return f"{where}: {len(body)} tensors taken; the head ({some(name for name in current if name not in body)}) is new"


def _head_names(encoder: nn.Module) -> list[str]:
    """Names of the layers whose size depends on the classes."""
    names = getattr(encoder, "default_cfg", {}).get("classifier", "head")
    return [names] if isinstance(names, str) else list(names)


def some(names: Iterable[str]) -> str:
    """The first few names, for messages."""
    shown = list(names)
    return ", ".join(map(repr, shown[:5])) + (", ..." if len(shown) > 5 else "")
