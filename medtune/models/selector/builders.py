"""Selection models over stored features or with a CLIP model, and reading of a trained one."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from medtune.data.opening import refuse_special
from medtune.errors import ConfigError, ModelError
from medtune.models.selector.clip import build_clip, check_local
from medtune.models.selector.model import HIDDEN, MODEL_TYPE, SelectionModel
from medtune.models.selector.sides import ClipSides, StoredSides
from medtune.models.weights import load_weights


def feature_selector(features: str, hidden: Sequence[int] = HIDDEN, rescale: bool = True) -> SelectionModel:
    """Build a head over stored features: the backbone is frozen, and has run once.

    Args:
        features: folder that the recipe ``selector_pairs`` has written.
        hidden: widths of the hidden layers; the official code has 512, 512, 512.
        rescale: see :class:`SelectionModel`.

    Raises:
        ConfigError: if the folder holds no features, or a width is not positive.
    """
    _check(hidden)
    planned = torch.empty(0).is_meta
    try:
        transform = StoredSides(features)
    except ConfigError as error:
        if not planned:
            raise
        model = SelectionModel(_Unknown(), (512, 512), hidden, rescale)
        model.missing = (str(error),)
        return model
    return SelectionModel(transform, transform.settings()["parts"], hidden, rescale)


def clip_selector(
    model: str, checkpoint: str | None = None, hidden: Sequence[int] = HIDDEN, rescale: bool = True
) -> SelectionModel:
    """Build a CLIP model with a head, to be trained as a whole, as the official code does.

    Args:
        model: architecture that open_clip knows, such as ``ViT-B-16``, or ``local-dir:FOLDER``.
        checkpoint: safetensors file of its weights; None takes the folder's. An architecture without a checkpoint
            starts from random weights.
        hidden: widths of the hidden layers.
        rescale: see :class:`SelectionModel`.

    Raises:
        ConfigError: if open_clip is not installed, something would be downloaded, or a width is not positive.
        ModelError: if the model cannot be opened.
    """
    _check(hidden)
    check_local(model, checkpoint)
    planned = torch.empty(0).is_meta
    folder = model.removeprefix("local-dir:")
    wanted = checkpoint if checkpoint is not None else folder if folder != model else None
    if planned and folder != model and not Path(folder).expanduser().is_dir():
        raise ModelError(f"the pretrained model is not here: {folder} (the config's header has the download line)")
    load = not planned and (checkpoint is not None or folder != model)
    device = torch.empty(0).device
    backbone: Any = build_clip(model, checkpoint, device, load)
    size = backbone.visual.image_size
    built = SelectionModel(
        ClipSides(model),
        _widths(backbone, device),
        hidden,
        rescale,
        backbone,
        int(size[0] if isinstance(size, tuple | list) else size),
        lambda: build_clip(model, None, "cpu", load=False),
    )
    if planned and wanted is not None and not Path(wanted).expanduser().exists():
        built.missing = (f"the pretrained weights are not here: {wanted} (the config's header has the download line)",)
    return built


def load_selector(path: str | Path) -> SelectionModel:
    """Read a trained selection model, frozen and in evaluation mode.

    Args:
        path: the ``weights`` folder of a ``selector`` run.

    Raises:
        ModelError: if the folder does not hold such a model, or it is damaged.
        ConfigError: if it has a CLIP model and open_clip is not installed.
    """
    file = Path(path).expanduser() / "config.json"
    refuse_special(file, ModelError)
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        if config["model_type"] != MODEL_TYPE:
            raise ValueError(f"model_type {config['model_type']!r}")
        shape = tuple(config["hidden"]), bool(config["rescale"])
        kept, parts = dict(config["inputs"]), tuple(config["parts"])
        clip = config["backbone"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else error
        raise ModelError(
            f"{path} holds no selection model ({what}); name the weights folder of a selector run"
        ) from error
    if clip is None:
        built = SelectionModel(_Kept(kept), parts, *shape)
    else:
        backbone = build_clip(clip, None, "cpu", load=False)
        built = SelectionModel(ClipSides(clip), parts, *shape, backbone)
    built.load_state_dict(load_weights(path, built))
    return built.eval().requires_grad_(False)


class _Kept:
    """Stands in for a transform: what a trained head's features were made of."""

    looks, max_seq_len, dtype = False, 1, torch.float32

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings

    def inputs(self, side: Any, open_image: Any) -> dict[str, torch.Tensor]:
        raise ModelError("this selection model reads stored features; make them first")

    def settings(self) -> dict[str, Any]:
        return self._settings


class _Unknown(_Kept):
    """Stands in for features that are not there yet, when a run is planned."""

    def __init__(self) -> None:
        super().__init__({"parts": [512, 512]})


def _check(hidden: Sequence[int]) -> None:
    if not hidden or any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in hidden):
        raise ConfigError(f"hidden: widths of hidden layers are whole numbers above 0, not {list(hidden)}")


def _widths(backbone: Any, device: torch.device) -> tuple[int, int]:
    """Return the widths of text and image features, by one forward pass on the meta device or on this one."""
    size = backbone.visual.image_size
    side = int(size[0] if isinstance(size, tuple | list) else size)
    length = int(getattr(backbone, "context_length", None) or 77)
    with torch.no_grad():
        read = backbone.encode_text(torch.zeros(1, length, dtype=torch.long, device=device))
        seen = backbone.encode_image(torch.zeros(1, 3, side, side, device=device))
    return int(read.shape[-1]), int(seen.shape[-1])
