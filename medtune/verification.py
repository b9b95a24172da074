"""``medtune export --verify``: the exported folder answers in transformers as the run's model answers in medtune.

Both decode greedily in fp32, token by token and without caches, the same prompts on the same made-up images. The run's
model is put together from its checkpoint and its base; the exported files are read by transformers alone.
"""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torchtune.training import set_default_dtype

from medtune.config import Component, import_path, instantiate
from medtune.data.randomness import sample_rng
from medtune.data.sample import Message, Sample
from medtune.errors import ConfigError, ModelError
from medtune.models.common.family import StateDict
from medtune.models.lora.names import PREFIX
from medtune.models.lora.peft import WEIGHTS_NAME
from medtune.models.lora.peft_config import read_config, strength_of
from medtune.models.qwen2_5_vl._images import published_inputs

QUESTIONS = (
    "What is shown in this image?",
    "Describe the image in one sentence.",
    "Is anything abnormal? Answer yes or no.",
)
NEW_TOKENS = 12
TIE = 1e-3  # two candidates whose logits are closer are equally good to fp32
_SIDE = 96  # pixels; the transform resizes
_LAST = ".lora_A.weight"


@dataclass(frozen=True)
class Verified:
    """What was compared.

    Attributes:
        answers: number of answers.
        tokens: number of tokens in them.
        difference: largest absolute difference of two logits.
    """

    answers: int
    tokens: int
    difference: float

    def __str__(self) -> str:
        return (
            f"verified in transformers: {self.answers} answers, {self.tokens} tokens, all equal; logits differ by at "
            f"most {self.difference:.1e}"
        )


def run_model(component: Component, state: StateDict) -> Any:
    """The run's model with merged weights, in fp32 on the CPU.

    Args:
        component: the run's builder; its base is not quantised here, because ``state`` holds what it rounded to.
        state: every tensor without adapters, as :func:`medtune.models.lora.merge.merge_adapters` returns it.
    """
    known = inspect.signature(import_path(component.path)).parameters
    # transformers lets text before an image attend to it; Meta's code and medtune's default do not
    changes = {name: value for name, value in (("quantize_base", False), ("hf_rows", True)) if name in known}
    with set_default_dtype(torch.float32):
        model = instantiate({**component, **changes})
    model.load_state_dict({key: tensor.float() for key, tensor in state.items()}, strict=False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_b." in name:
                parameter.zero_()
    return model.eval()


def open_in_transformers(folder: Path, adapter: Path | None = None) -> Any:
    """Load a folder with transformers, and an adapter with PEFT, in fp32.

    An installed torchao that PEFT refuses is passed over: the adapter's tensors are then added to the modules that its
    files name, as PEFT adds them.

    Raises:
        ConfigError: if transformers is not installed.
        ModelError: if it cannot load the folder, or tensors are missing, left over or of another size.
    """
    try:
        import transformers
    except ImportError:
        raise ConfigError("--verify needs transformers: pip install 'medtune[transformers]'") from None
    where: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = transformers.AutoConfig.from_pretrained(folder, **where)
        if config.model_type == "mllama":  # current versions read the output where published files mean the input
            layers = config.vision_config.intermediate_layers_indices
            config.vision_config.intermediate_layers_indices = [layer - 1 for layer in layers]
        model, info = transformers.AutoModelForImageTextToText.from_pretrained(
            folder, config=config, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **where
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [repr(error)])[0]
        raise ModelError(f"--verify: transformers cannot load {folder}: {reason}") from error
    wrong = [name for key in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in info[key]]
    if wrong:
        raise ModelError(f"--verify: {folder} does not fit in transformers: {len(wrong)} tensors ({wrong[0]}, ...)")
    return (model if adapter is None else _with_adapter(model, adapter)).eval()


def _with_adapter(model: nn.Module, folder: Path) -> nn.Module:
    try:
        from peft import PeftModel

        return PeftModel.from_pretrained(model, folder)
    except ImportError:  # PEFT is missing, or refuses torchtune's version of torchao
        pass
    config, tensors = read_config(folder), load_file(folder / WEIGHTS_NAME)
    with torch.no_grad():
        for name, tensor in tensors.items():
            plain = name.removeprefix(PREFIX)
            if name.endswith(_LAST):
                module = plain.removesuffix(_LAST)
                strength = strength_of(config, module, folder)
                update = tensors[name.replace(".lora_A.", ".lora_B.")].float() @ tensor.float()
                model.get_parameter(f"{module}.weight").add_(update, alpha=strength.alpha / strength.rank)
            elif ".lora_B." not in name:
                model.get_parameter(plain).copy_(tensor)
    return model


def compare(ours: Any, transform: Any, theirs: Any, where: str) -> Verified:
    """Compare the answers of two models token for token.

    Args:
        ours: a VLM in fp32.
        transform: its transform.
        theirs: the model in transformers, in fp32.
        where: the exported folder, for messages.

    Raises:
        ModelError: at the first token that differs.
    """
    transform.dtype = torch.float32
    tokens, largest = 0, 0.0
    for number, item in enumerate(_prompts(transform)):
        batch = transform.collate([item], pad_side="left")
        for step in range(NEW_TOKENS):
            with torch.no_grad():
                features = ours.encode(batch["vision"])
                hidden = ours.hidden(batch["tokens"], features, vision_mask=batch["vision_mask"])
                mine = ours.logits(hidden[:, -1:])[0, -1].float()
                other = theirs(**_their_inputs(theirs, batch)).logits[0, -1].float()
            size = min(len(mine), len(other))
            largest = max(largest, (mine[:size] - other[:size]).abs().max().item())
            first, second = int(mine.argmax()), int(other.argmax())
            if first != second and not _tied(mine, other, first, second):
                raise ModelError(
                    f"--verify: {where} answers otherwise in transformers: answer {number + 1}, token {step + 1} is "
                    f"{second}, and {first} in medtune; logits differ by up to {largest:.1e}. The files were kept"
                )
            tokens += 1
            if first in set(transform.stop_ids):
                break
            _append(batch, first)
    return Verified(len(QUESTIONS), tokens, largest)


def _tied(mine: Tensor, other: Tensor, first: int, second: int) -> bool:
    both = max(first, second) < min(len(mine), len(other))
    return both and all(abs(float(logits[first] - logits[second])) < TIE for logits in (mine, other))


def _prompts(transform: Any) -> Iterator[dict]:
    for number, question in enumerate(QUESTIONS):
        noise = sample_rng(0, 0, number)
        pixels = np.array([noise.randrange(256) for _ in range(12 * 12 * 3)], dtype=np.uint8).reshape(12, 12, 3)
        image = Image.fromarray(pixels).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
        sample = Sample(f"question {number + 1}", ("image",), (Message("user", question),))
        yield transform(sample, [image], inference=True)


def _append(batch: dict, token: int) -> None:
    """Add a token to the one row; it sees what the token before it sees."""
    batch["tokens"] = torch.cat([batch["tokens"], torch.tensor([[token]])], dim=1)
    batch["padding"] = torch.cat([batch["padding"], torch.ones(1, 1, dtype=torch.bool)], dim=1)
    mask = batch["vision_mask"]
    if mask is not None and mask.dim() == 3:
        batch["vision_mask"] = torch.cat([mask, mask[:, -1:]], dim=1)


def _their_inputs(model: Any, batch: dict) -> dict[str, Tensor]:
    """A batch of one row in transformers' words."""
    vision, given = batch["vision"], {"input_ids": batch["tokens"], "attention_mask": batch["padding"].long()}
    images, tiles = vision["images"], vision["tiles"]
    if "grid" in vision:
        seen = batch["tokens"] == model.config.image_token_id
        return given | published_inputs(images[0], vision["grid"][0]) | {"mm_token_type_ids": seen.long()}
    if "aspect_ratio" not in vision:
        pixels = {"pixel_values": torch.cat([images[0, at, :n] for at, n in enumerate(tiles[0])])}
        if model.config.model_type == "gemma3":  # without them its attention is silently causal within an image
            pixels["token_type_ids"] = (batch["tokens"] == model.config.image_token_id).long()
        return given | pixels
    config = model.config.vision_config
    slots, most = config.max_num_tiles, images.shape[2]
    grids = [tuple(grid) for grid in config.supported_aspect_ratios]
    ids = [[grids.index(tuple(grid.tolist())) + 1 for grid in row] for row in vision["aspect_ratio"]]
    sees = batch["vision_mask"].unflatten(2, (images.shape[1], most, -1))[..., 0]
    return given | {
        "pixel_values": nn.functional.pad(images, (0, 0) * 3 + (0, slots - most)),
        "aspect_ratio_ids": torch.tensor(ids),
        "aspect_ratio_mask": (torch.arange(slots) < tiles.clamp(min=1)[..., None]).long(),
        "cross_attention_mask": nn.functional.pad(sees, (0, slots - most)).long(),
    }
