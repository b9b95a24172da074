"""A tiny model of ours and the same weights in transformers' Mllama."""

import warnings
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import MllamaConfig, MllamaForConditionalGeneration

from medtune.models.common.deep_fusion import DeepFusionVLM
from medtune.models.llama3_2_vision._collate import BatchLayout, collate
from medtune.models.llama3_2_vision._component_builders import deep_fusion_vlm
from medtune.models.llama3_2_vision._shape import DeepFusionShape
from medtune.models.weights import save_hf

SHAPE = DeepFusionShape(
    image_size=28,
    patch_size=7,
    vision_dim=32,
    vision_layers=4,
    vision_heads=4,
    hidden_states=(1, 3),
    projection_layers=2,
    table_tiles=4,
    dim=64,
    layers=4,
    fusion_interval=2,
    heads=4,
    kv_heads=2,
    intermediate_dim=96,
    vocab_size=100,
    max_seq_len=256,
    encoder_max_seq_len=512,
    bos_id=97,
    eos_id=98,
    pad_id=99,
)
IMAGE = SHAPE.vocab_size
LAYOUT = BatchLayout(pad_id=99, image_id=IMAGE, image_size=28, tokens_per_tile=SHAPE.tokens_per_tile)


def tiny(table_tiles: int = 4, **kwargs: object) -> DeepFusionVLM:
    """Our model, every parameter random: gates, norms, biases and position tables included."""
    model = deep_fusion_vlm("tiny", replace(SHAPE, table_tiles=table_tiles), **kwargs)
    return randomise(model).eval()


def randomise(model: DeepFusionVLM) -> DeepFusionVLM:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim < 2 and "norm" in name or ".ln_" in name:
                parameter.copy_(1 + 0.3 * noise if "bias" not in name else 0.3 * noise)
            else:
                parameter.copy_(noise * (0.7 if parameter.ndim < 2 or "pos_embed" in name else 0.15))
    return model


def twin(model: DeepFusionVLM, folder: Path) -> MllamaForConditionalGeneration:
    """The same weights in transformers, through an export. All tensors must find their place."""
    save_hf(model.state_dict(), model.family, folder)
    config = MllamaConfig.from_pretrained(folder)
    # transformers reads the state after a layer where the weights mean the state before it
    config.vision_config.intermediate_layers_indices = [i - 1 for i in SHAPE.hidden_states]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other, info = MllamaForConditionalGeneration.from_pretrained(
            folder, config=config, output_loading_info=True, attn_implementation="eager", dtype=torch.float32
        )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return other.eval()


def item(tokens: list[int], grids: list[tuple[int, int]], seed: int) -> dict:
    """A transformed sample with random tiles."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "id": str(seed),
        "tokens": tokens,
        "labels": list(tokens),
        "images": [torch.randn(h * w, 3, 28, 28, generator=generator) for h, w in grids],
        "aspect_ratio": [torch.tensor(grid) for grid in grids],
    }


def batch_of(*items: dict, tiles: int = 1, pad_side: str = "right") -> dict:
    return collate(list(items), LAYOUT, pad_side=pad_side, images=1, tiles=tiles, dtype=torch.float32)


def our_logits(model: DeepFusionVLM, batch: dict) -> Tensor:
    with torch.no_grad():
        features = model.encode(batch["vision"])
        return model.logits(model.hidden(batch["tokens"], features, vision_mask=batch["vision_mask"]))


def their_logits(model: MllamaForConditionalGeneration, batch: dict) -> Tensor:
    """transformers' logits of our batch, told in its own inputs."""
    slots = model.config.vision_config.max_num_tiles
    grids = [tuple(grid) for grid in model.config.vision_config.supported_aspect_ratios]
    vision = batch["vision"]
    images, tiles = vision["images"], vision["tiles"]
    t = images.shape[2]
    ids = torch.tensor(
        [
            [grids.index(tuple(grid.tolist())) + 1 if n else 0 for grid, n in zip(row, counts, strict=True)]
            for row, counts in zip(vision["aspect_ratio"], tiles, strict=True)
        ]
    )
    sees = batch["vision_mask"].unflatten(2, (images.shape[1], t, -1))[..., 0]
    with torch.no_grad():
        return model(
            input_ids=batch["tokens"],
            attention_mask=batch["padding"].long(),
            pixel_values=torch.nn.functional.pad(images, (0, 0) * 3 + (0, slots - t)),
            aspect_ratio_ids=ids,
            aspect_ratio_mask=(torch.arange(slots) < tiles.clamp(min=1)[..., None]).long(),
            cross_attention_mask=torch.nn.functional.pad(sees, (0, slots - t)).long(),
        ).logits


def worst(ours: Tensor, theirs: Tensor, batch: dict) -> float:
    """Largest difference on real tokens; the logits must be of a size at which it means something."""
    real = batch["padding"]
    assert theirs[real].abs().max() > 1
    return (ours[real] - theirs[real]).abs().max().item()
