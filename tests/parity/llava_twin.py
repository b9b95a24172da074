"""A tiny LLaVA of ours and the same weights in transformers."""

import warnings
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from medtune.models.common.early_collate import collate_early
from medtune.models.common.early_fusion import EarlyFusionVLM
from medtune.models.llava._component_builders import llava_vlm
from medtune.models.llava._shape import LlavaShape
from medtune.models.weights import save_hf

SHAPE = LlavaShape(
    image_size=28,
    patch_size=7,
    vision_dim=32,
    vision_layers=4,
    vision_heads=4,
    dim=64,
    layers=3,
    heads=4,
    kv_heads=4,
    intermediate_dim=96,
    vocab_size=104,
    image_id=100,
    max_seq_len=256,
    pad_id=101,
)
IMAGE = [SHAPE.image_id] * SHAPE.tokens_per_image


def tiny(shape: LlavaShape = SHAPE, **kwargs: object) -> EarlyFusionVLM:
    """Our model, every parameter and kept tensor random: norms, biases and positions included."""
    return randomise(llava_vlm("tiny", shape, **kwargs)).eval()


def randomise(model: EarlyFusionVLM) -> EarlyFusionVLM:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in sorted({**dict(model.named_parameters()), **kept(model)}.items()):
            noise = torch.randn(tensor.shape, generator=generator)
            if tensor.ndim < 2 and ("norm" in name or ".ln_" in name) and "bias" not in name:
                tensor.copy_(1 + 0.3 * noise)
            else:
                tensor.copy_(noise * (0.4 if tensor.ndim < 2 or "embedding" in name else 0.15))
    return model


def kept(model: EarlyFusionVLM) -> dict[str, Tensor]:
    """The tensors that are read and written without being used."""
    return {name: tensor for name, tensor in model.named_buffers() if ".unused." in name}


def twin(model: EarlyFusionVLM, folder: Path) -> LlavaForConditionalGeneration:
    """The same weights in transformers, through an export. All tensors must find their place."""
    save_hf(model.state_dict(), model.family, folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other, info = LlavaForConditionalGeneration.from_pretrained(
            folder, output_loading_info=True, attn_implementation="eager", dtype=torch.float32
        )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return other.eval()


def item(tokens: list[int], images: int, seed: int) -> dict:
    """A transformed sample with random images."""
    generator = torch.Generator().manual_seed(seed)
    size = SHAPE.image_size
    return {
        "id": str(seed),
        "tokens": tokens,
        "labels": list(tokens),
        "images": [torch.randn(1, 3, size, size, generator=generator) for _ in range(images)],
    }


def batch_of(*items: dict, pad_side: str = "right") -> dict:
    return collate_early(
        list(items),
        pad_id=SHAPE.pad_id,
        tile_size=SHAPE.image_size,
        tokens_per_tile=SHAPE.tokens_per_image,
        pad_side=pad_side,
        images=1,
        tiles=1,
        dtype=torch.float32,
    )


def our_logits(model: EarlyFusionVLM, batch: dict) -> Tensor:
    with torch.no_grad():
        features = model.encode(batch["vision"])
        return model.logits(model.hidden(batch["tokens"], features, vision_mask=batch["vision_mask"]))


def their_logits(model: torch.nn.Module, batch: dict) -> Tensor:
    """transformers' logits of our batch, told in its own inputs: the real images, one after the other."""
    images = batch["vision"]["images"].flatten(0, 2)[batch["vision"]["tiles"].flatten() > 0]
    with torch.no_grad():
        return model(
            input_ids=batch["tokens"],
            attention_mask=batch["padding"].long(),
            pixel_values=images if len(images) else None,
        ).logits


def worst(ours: Tensor, theirs: Tensor, batch: dict) -> float:
    """Largest difference on real tokens; the logits must be of a size at which it means something."""
    real = batch["padding"]
    assert theirs[real].abs().max() > 1
    return (ours[real] - theirs[real]).abs().max().item()
