"""CLIP models of open_clip, from local files only."""

from pathlib import Path
from typing import Any

from torch import nn

from medtune.errors import ConfigError, ModelError


def check_local(model: str, checkpoint: str | None) -> None:
    """Refuse what would be downloaded, and files that can run code.

    Raises:
        ConfigError: The model is one of the hub, or the checkpoint is no safetensors file.
    """
    if model.startswith("hf-hub:"):
        raise ConfigError("nothing is downloaded; give local-dir:FOLDER, the folder of the downloaded model")
    if checkpoint is not None and not checkpoint.endswith(".safetensors"):
        raise ConfigError("model.checkpoint must be a .safetensors file; other formats can run code")


def build_clip(model: str, checkpoint: str | None, device: Any, load: bool) -> nn.Module:
    """Build a CLIP model.

    Args:
        model: name that open_clip knows, or ``local-dir:FOLDER``.
        checkpoint: its safetensors file; None takes the folder's weights.
        device: where it is built; may be the meta device.
        load: whether its pretrained weights are read.

    Raises:
        ConfigError: open_clip is not installed.
        ModelError: open_clip cannot open it.
    """
    open_clip = _open_clip()
    given = None if checkpoint is None or not load else str(Path(checkpoint).expanduser())
    try:
        return open_clip.create_model(model, pretrained=given, load_weights=load, pretrained_text=False, device=device)
    except Exception as error:
        raise ModelError(
            f"{model} cannot be opened by open_clip ({type(error).__name__}); check name and files"
        ) from None


def preprocessing(model: str) -> tuple[Any, Any]:
    """Return the image transform and the tokenizer of a CLIP model."""
    open_clip = _open_clip()
    import torch

    try:
        with torch.device("meta"):
            network = open_clip.create_model(
                model, pretrained=None, load_weights=False, pretrained_text=False, device="meta"
            )
        settings = open_clip.transform.PreprocessCfg(**network.visual.preprocess_cfg)
        return open_clip.transform.image_transform_v2(settings, is_train=False), open_clip.get_tokenizer(model)
    except Exception as error:
        raise ModelError(
            f"{model} cannot be opened by open_clip ({type(error).__name__}); check name and files"
        ) from None


def _open_clip() -> Any:
    try:
        import open_clip
    except ImportError:
        raise ConfigError("CLIP models need open_clip: pip install 'medtune[curation]'") from None
    return open_clip
