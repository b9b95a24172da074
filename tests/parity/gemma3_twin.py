"""Tiny models of the Gemma 3 family and the same weights in transformers."""

import warnings
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import Gemma3ForConditionalGeneration

from medtune.models.common.early_collate import collate_early
from medtune.models.gemma3._component_builders import Gemma3VLM, gemma3_vlm
from medtune.models.gemma3._shape import Gemma3Shape
from medtune.models.weights import save_hf

IMAGE, START, END, PAD = 95, 93, 94, 99
SHAPE = Gemma3Shape(
    image_size=42,
    patch_size=7,
    vision_dim=36,
    vision_layers=3,
    vision_heads=3,
    vision_mlp_dim=52,
    tokens_per_image=9,
    dim=60,
    layers=7,  # the sixth is global
    heads=6,
    kv_heads=2,
    head_dim=14,  # not dim / heads
    mlp_dim=76,
    vocab_size=101,
    query_scale=23,
    window=12,
    image_id=IMAGE,
    image_start_id=START,
    image_end_id=END,
    bos_id=97,
    eos_ids=(98, 92),
    pad_id=PAD,
    context=512,
    max_seq_len=256,
)
K = SHAPE.tokens_per_image


def tiny(*, seed: int = 1, lora: object = None, **changes: object) -> Gemma3VLM:
    """Our model, every parameter random: norms, biases and positions included."""
    return randomise(gemma3_vlm("tiny", replace(SHAPE, **changes), lora=lora), seed).eval()


def randomise(model: Gemma3VLM, seed: int = 1) -> Gemma3VLM:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.startswith("encoder.vision") and "norm" in name and name.endswith("weight"):
                parameter.copy_(1 + 0.3 * noise)
            elif name.endswith("scale"):  # Gemma's norms add one
                parameter.copy_(0.3 * noise)
            else:
                wide = parameter.ndim < 2 or "embeddings" in name or "positions" in name
                parameter.copy_(noise * (0.4 if wide else 0.15))
    return model


def twin(model: Gemma3VLM, folder: Path) -> Gemma3ForConditionalGeneration:
    """The same weights in transformers, through an export. All tensors must find their place."""
    save_hf(model.state_dict(), model.family, folder)
    return load(folder)


def load(folder: Path, attention: str = "eager") -> Gemma3ForConditionalGeneration:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other, info = Gemma3ForConditionalGeneration.from_pretrained(
            folder, output_loading_info=True, attn_implementation=attention, dtype=torch.float32
        )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return other.eval()


def item(text: list[int | None], seed: int) -> dict:
    """A transformed sample; None in the text is the place of the next image, with the tokens around it."""
    generator = torch.Generator().manual_seed(seed)
    block = [START, *[IMAGE] * K, END]
    return {
        "id": str(seed),
        "tokens": (tokens := [i for token in text for i in (block if token is None else [token])]),
        "labels": list(tokens),
        "images": [torch.randn(1, 3, 42, 42, generator=generator) for token in text if token is None],
    }


def batch_of(*items: dict, images: int = 1, pad_side: str = "right") -> dict:
    return collate_early(list(items), pad_id=PAD, tile_size=42, tokens_per_tile=K, pad_side=pad_side, images=images)


def our_logits(model: Gemma3VLM, batch: dict, **kwargs: Tensor) -> Tensor:
    with torch.no_grad():
        features = model.encode(batch["vision"])
        return model.logits(model.hidden(batch["tokens"], features, vision_mask=batch["vision_mask"], **kwargs))


def their_logits(model: Gemma3ForConditionalGeneration, batch: dict, **kwargs: Tensor) -> Tensor:
    """transformers' logits of our batch: it takes all images in one row, and must be told which tokens they are."""
    images, tiles = batch["vision"]["images"], batch["vision"]["tiles"]
    real = [images[b, i, :n] for b, row in enumerate(tiles) for i, n in enumerate(row)]
    with torch.no_grad():
        return model(
            input_ids=batch["tokens"],
            attention_mask=batch["padding"].long(),
            token_type_ids=(batch["tokens"] == IMAGE).long(),
            pixel_values=torch.cat(real) if tiles.sum() else None,
            **kwargs,
        ).logits


def left_padded(batch: dict) -> dict[str, Tensor]:
    """Mask and positions of a batch that is padded on the left, as generation pads it."""
    real = batch["padding"]
    length = real.shape[1]
    mask = torch.ones(length, length, dtype=torch.bool).tril() & real[:, None] | torch.eye(length, dtype=torch.bool)
    return {"mask": mask, "input_pos": (real.cumsum(dim=1) - 1).clamp(min=0)}


def worst(ours: Tensor, theirs: Tensor, batch: dict) -> float:
    """Largest difference on real tokens; the logits must be of a size at which it means something."""
    real = batch["padding"]
    assert theirs[real].abs().max() > 1
    return (ours[real] - theirs[real]).abs().max().item()
