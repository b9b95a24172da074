"""A tiny early-fusion model with its transform: one convolution sees, one linear map projects, Qwen2 or Llama reads."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torchtune.models.llama2 import llama2
from torchtune.models.qwen2 import qwen2
from torchvision.transforms.v2 import functional as F

from medtune.models.common.chat_template import llama3
from medtune.models.common.early_fusion import EarlyFusionVLM, ImageEncoder
from medtune.models.common.early_transform import EarlyFusionTransform
from medtune.models.common.family import ModelFamily
from medtune.models.mini import MiniTokenizer

SIZE = 8
PER_TILE = 4
PLACEHOLDER = "\u2460"


class TinyTower(nn.Module):
    """Tiles [n, 3, h, w] -> their patches [n, 4, width]; ``layers`` is what checkpointing and sharding look for."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, SIZE // 2, SIZE // 2)
        self.layers = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, images: Tensor) -> Tensor:
        return self.layers[0](self.conv(images).flatten(2).transpose(1, 2).tanh())


def tiny_early_vlm(vocab_size: int, embed_dim: int = 16, max_seq_len: int = 256, kind: str = "qwen2") -> EarlyFusionVLM:
    """A model whose image token is the first id beyond its vocabulary."""
    build = qwen2 if kind == "qwen2" else llama2
    sizes = {"num_layers": 2, "num_heads": 2, "num_kv_heads": 2, "embed_dim": embed_dim, "max_seq_len": max_seq_len}
    extra = {"intermediate_dim": 2 * embed_dim} if kind == "qwen2" else {}
    decoder = build(vocab_size=vocab_size, **sizes, **extra)
    encoder = ImageEncoder(TinyTower(12), nn.Linear(12, embed_dim))
    model = EarlyFusionVLM(decoder, encoder, image_id=vocab_size, family=None)
    config = {"model_type": "tiny_early", "vision_config": {"image_size": SIZE}}
    model.family = ModelFamily("tiny_early", "tiny_early", dict, dict, lambda: config, frozenset(model.state_dict()))
    return model


class TinyTiler:
    """As many tiles as the picture's longer side holds of the shorter, four at most; one behind the other."""

    size = SIZE
    max_tiles = 4

    def count(self, width: int, height: int) -> int:
        return min(self.max_tiles, max(width, height) // min(width, height))

    def __call__(self, image: Image.Image) -> Tensor:
        n = self.count(*image.size)
        pixels = F.to_dtype(F.pil_to_tensor(image.convert("RGB").resize((SIZE * n, SIZE))), torch.float32, scale=True)
        return pixels.unflatten(2, (n, SIZE)).permute(2, 0, 1, 3) - 0.5


def tiny_early_transform(
    path: str | Path, max_seq_len: int = 256, marks: tuple[str, ...] = ("<|eom_id|>",)
) -> EarlyFusionTransform:
    """Llama-3's chat format around tiles of four tokens, between the tokens ``marks`` at either end."""
    tokenizer = MiniTokenizer(path)
    mark = [tokenizer.special_id(token) for token in marks]
    return EarlyFusionTransform(
        tokenizer,
        llama3(),
        TinyTiler(),
        image_id=tokenizer.image_id,
        tokens_per_tile=PER_TILE,
        image_start=mark,
        image_end=mark,
        max_seq_len=max_seq_len,
        placeholder_text=PLACEHOLDER,
    )
