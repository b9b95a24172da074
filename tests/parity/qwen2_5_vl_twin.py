"""Tiny models of the Qwen2.5-VL family and the same weights in transformers."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from medtune.models.qwen2_5_vl._collate import collate_blocks
from medtune.models.qwen2_5_vl._component_builders import qwen2_5_vl
from medtune.models.qwen2_5_vl._shape import Qwen2_5VLShape
from medtune.models.qwen2_5_vl._vlm import Qwen2_5VL
from medtune.models.weights import save_hf

IMAGE = 95
SHAPE = Qwen2_5VLShape(
    vision_dim=48,
    vision_layers=4,
    vision_heads=3,
    vision_mlp_dim=44,
    full_layers=(1, 3),
    dim=64,
    layers=3,
    heads=4,
    kv_heads=2,
    mlp_dim=96,
    vocab_size=101,
    tied=False,
    image_id=IMAGE,
    video_id=96,
    vision_start_id=93,
    vision_end_id=94,
    bos_id=97,
    eos_id=98,
    rope_sections=(2, 3, 3),
    rope_base=10_000.0,
    max_seq_len=512,
)
SHAPES = {"untied": SHAPE, "tied": replace(SHAPE, tied=True, heads=2, kv_heads=1, rope_sections=(4, 6, 6))}
Grid = tuple[int, int]


def tiny(shape: Qwen2_5VLShape = SHAPE, *, seed: int = 1, **kwargs: Any) -> Qwen2_5VL:
    """Our model, every parameter random: norms and biases included."""
    return randomise(qwen2_5_vl("tiny", shape, **kwargs), seed).eval()


def randomise(model: Qwen2_5VL, seed: int = 1) -> Qwen2_5VL:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.copy_(1 + 0.3 * noise)
            else:
                wide = parameter.ndim < 2 or "embeddings" in name
                parameter.copy_(noise * (0.7 if wide else 0.05 if "conv" in name else 0.15))
    return model


def twin(model: Qwen2_5VL, folder: Path) -> Qwen2_5_VLForConditionalGeneration:
    """The same weights in transformers, through an export. All tensors must find their place."""
    save_hf(model.state_dict(), model.family, folder)
    return load(folder)


def load(folder: Path) -> Qwen2_5_VLForConditionalGeneration:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            folder, output_loading_info=True, attn_implementation="eager", dtype=torch.float32
        )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return other.eval()


def item(text: list[int | None], grids: list[Grid], seed: int) -> dict:
    """A transformed sample with random pixels; None in the text is the place of the next image."""
    generator = torch.Generator().manual_seed(seed)
    waiting = iter(grids)
    tokens: list[int] = []
    for token in text:
        if token is None:
            height, width = next(waiting)
            tokens += [93, *[IMAGE] * (height * width), 94]
        else:
            tokens.append(token)
    return {
        "id": str(seed),
        "tokens": tokens,
        "labels": list(tokens),
        "images": [torch.randn(height * width, 3, 28, 28, generator=generator) for height, width in grids],
        "grids": grids,
    }


def batch_of(*items: dict, pad_side: Any = "right", **more: Any) -> dict:
    return collate_blocks(list(items), pad_id=99, block_size=28, pad_side=pad_side, **more)


def our_logits(model: Any, batch: dict, **kwargs: Any) -> Tensor:
    with torch.no_grad():
        features = model.encode(batch["vision"])
        return model.logits(model.hidden(batch["tokens"], features, vision_mask=batch["vision_mask"], **kwargs))


def their_inputs(batch: dict) -> dict[str, Tensor]:
    """Our batch as transformers' processor gives it: patches of all images in one list, both frames alike."""
    images, grids = batch["vision"]["images"], batch["vision"]["grid"]
    real = [images[b, i, : h * w] for b, row in enumerate(grids.tolist()) for i, (h, w) in enumerate(row) if h]
    given = {
        "input_ids": batch["tokens"],
        "attention_mask": batch["padding"].long(),
        "mm_token_type_ids": (batch["tokens"] == IMAGE).long(),
    }
    if not real:
        return given
    blocks = torch.cat(real)
    patches = blocks.view(-1, 3, 2, 14, 2, 14).permute(0, 2, 4, 1, 3, 5).reshape(-1, 3, 1, 14, 14)
    sizes = [(1, 2 * h, 2 * w) for row in grids.tolist() for h, w in row if h]
    return {
        **given,
        "pixel_values": patches.expand(-1, 3, 2, 14, 14).reshape(len(patches), -1),
        "image_grid_thw": torch.tensor(sizes),
    }


def their_logits(model: Any, batch: dict, **kwargs: Any) -> Tensor:
    with torch.no_grad():
        return model(**their_inputs(batch), **kwargs).logits


def worst(ours: Tensor, theirs: Tensor, batch: dict) -> float:
    """Largest difference on real tokens; the logits must be of a size at which it means something."""
    real = batch["padding"]
    assert theirs[real].abs().max() > 1
    return (ours[real] - theirs[real]).abs().max().item()
