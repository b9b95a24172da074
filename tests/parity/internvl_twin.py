"""Tiny models of the InternVL family and the same weights in transformers."""

import warnings
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import InternVLForConditionalGeneration

from medtune.models.common.early_collate import collate_early
from medtune.models.common.early_fusion import EarlyFusionVLM
from medtune.models.internvl._component_builders import internvl_vlm
from medtune.models.internvl._shape import InternVLShape
from medtune.models.weights import save_hf

IMAGE = 95
_SIZES = {
    "image_size": 28,
    "patch_size": 7,
    "vision_dim": 32,
    "vision_layers": 3,
    "vision_heads": 4,
    "vision_mlp_dim": 96,
    "dim": 64,
    "layers": 3,
    "heads": 4,
    "kv_heads": 2,
    "mlp_dim": 96,
    "vocab_size": 100,
    "image_id": IMAGE,
    "bos_id": 97,
    "eos_id": 98,
    "pad_id": 99,
    "max_seq_len": 256,
}
SHAPES = {
    "internlm2": InternVLShape(**_SIZES, decoder="internlm2", norm_eps=1e-5),
    "qwen2": InternVLShape(**_SIZES, decoder="qwen2", norm_eps=1e-6),
}
K = SHAPES["qwen2"].tokens_per_tile


def tiny(decoder: str, *, layout: str = "hf", seed: int = 1, **kwargs: object) -> EarlyFusionVLM:
    """Our model, every parameter random: norms, biases, layer scales and positions included."""
    return randomise(internvl_vlm("tiny", replace(SHAPES[decoder]), layout=layout, **kwargs), seed).eval()


def randomise(model: EarlyFusionVLM, seed: int = 1) -> EarlyFusionVLM:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name and not name.endswith("bias") or name.endswith("gamma"):
                parameter.copy_(1 + 0.3 * noise)
            else:
                wide = parameter.ndim < 2 or "embeddings" in name or "positions" in name or "cls" in name
                parameter.copy_(noise * (0.7 if wide else 0.15))
    return model


def twin(model: EarlyFusionVLM, folder: Path) -> InternVLForConditionalGeneration:
    """The same weights in transformers, through an export. All tensors must find their place."""
    save_hf(model.state_dict(), model.family, folder)
    return load(folder)


def load(folder: Path) -> InternVLForConditionalGeneration:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other, info = InternVLForConditionalGeneration.from_pretrained(
            folder, output_loading_info=True, attn_implementation="eager", dtype=torch.float32
        )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return other.eval()


def item(text: list[int | None], tiles: list[int], seed: int) -> dict:
    """A transformed sample with random tiles; None in the text is the place of the next image."""
    generator = torch.Generator().manual_seed(seed)
    waiting = iter(tiles)
    tokens = [i for token in text for i in ([token] if token is not None else [IMAGE] * (K * next(waiting)))]
    return {
        "id": str(seed),
        "tokens": tokens,
        "labels": list(tokens),
        "images": [torch.randn(n, 3, 28, 28, generator=generator) for n in tiles],
    }


def batch_of(*items: dict, tiles: int = 1, images: int = 1, pad_side: str = "right") -> dict:
    return collate_early(
        list(items), pad_id=99, tile_size=28, tokens_per_tile=K, pad_side=pad_side, images=images, tiles=tiles
    )


def our_logits(model: EarlyFusionVLM, batch: dict, **kwargs: Tensor) -> Tensor:
    with torch.no_grad():
        features = model.encode(batch["vision"])
        return model.logits(model.hidden(batch["tokens"], features, vision_mask=batch["vision_mask"], **kwargs))


def their_logits(model: InternVLForConditionalGeneration, batch: dict, **kwargs: Tensor) -> Tensor:
    """transformers' logits of our batch: it takes all real tiles in one row."""
    images, tiles = batch["vision"]["images"], batch["vision"]["tiles"]
    real = [images[b, i, :n] for b, row in enumerate(tiles) for i, n in enumerate(row)]
    pixels = torch.cat(real) if tiles.sum() else None
    with torch.no_grad():
        return model(
            input_ids=batch["tokens"], attention_mask=batch["padding"].long(), pixel_values=pixels, **kwargs
        ).logits


def worst(ours: Tensor, theirs: Tensor, batch: dict) -> float:
    """Largest difference on real tokens; the logits must be of a size at which it means something."""
    real = batch["padding"]
    assert theirs[real].abs().max() > 1
    return (ours[real] - theirs[real]).abs().max().item()
