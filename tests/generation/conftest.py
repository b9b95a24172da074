"""A small random model whose answers differ from prompt to prompt, and questions of many shapes to ask it."""

import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from medtune.data.sample import Message, Sample
from medtune.errors import DataError
from medtune.generation.requests import Request
from medtune.models.mini import (
    mini_qwen2_5_vl,
    mini_qwen2_5_vl_transform,
    mini_transform,
    mini_vlm,
    train_mini_tokenizer,
)
from tests.models.tiny_early import tiny_early_transform, tiny_early_vlm

SIZES = {"square": (16, 16), "wide": (40, 16), "tall": (14, 30), "large": (50, 50)}


class PictureSource:
    """Pictures by name, ``shape-seed``; the names that were opened are remembered."""

    name = "pictures"

    def __init__(self) -> None:
        self.opened: list[str] = []

    def open_images(self, sample: Sample) -> list[Image.Image]:
        self.opened += sample.images
        return [self._draw(path) for path in sample.images]

    def _draw(self, path: str) -> Image.Image:
        shape, _, seed = path.partition("-")
        if shape == "broken":
            raise DataError(f"{path} is not an image")
        width, height = SIZES[shape]
        pixels = np.random.default_rng(int(seed)).integers(0, 256, (height, width, 3), dtype=np.uint8)
        return Image.fromarray(pixels)


@dataclass
class Setup:
    """What a test needs: the model, its transform, a source and a maker of requests."""

    model: nn.Module
    transform: Callable
    source: PictureSource

    def request(self, name: str, text: str, *images: str, **options) -> Request:
        return Request(name, Sample(name, images, (Message("user", text),)), self.source, **options)

    def requests(self, count: int = 13) -> list[Request]:
        """Text alone, one image of 1 to 4 tiles, two images; short and long; a third with continuations."""
        rng = random.Random(0)
        shown = [(), ("square-1",), ("wide-2",), ("large-3",), ("tall-4", "square-5"), ("square-1", "large-6")]
        made = []
        for i in range(count):
            text = " ".join(rng.choice(["cell", "size", "what", "nucleus", "color"]) for _ in range(rng.randint(1, 9)))
            options = ("big", "small and round", "The answer is A.") if i % 3 == 0 else ()
            made.append(self.request(f"q{i}", text, *shown[i % len(shown)], continuations=options))
        return made

    @torch.inference_mode()
    def plain_logits(self, request: Request, continuation: list[int]) -> Tensor:
        """Logits at every position of prompt and continuation: no padding, no cache, no sharing; [s, vocabulary]."""
        item = self.transform(request.sample, self.source.open_images(request.sample), inference=True)
        batch = self.transform.collate([item])
        mask = batch["vision_mask"]
        if mask.dim() == 3:
            mask = torch.cat([mask, mask[:, -1:].expand(-1, len(continuation), -1)], dim=1)
        tokens = torch.tensor([item["tokens"] + continuation])
        features = self.model.encode(batch["vision"])
        return self.model.logits(self.model.hidden(tokens, features, vision_mask=mask))[0]


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory) -> tuple[str, int]:
    """The folder of a tokenizer, and the size of its vocabulary."""
    folder = tmp_path_factory.mktemp("tokenizer")
    texts = ["What is the cell size? big small nucleus color"]
    return str(folder), train_mini_tokenizer(texts, 300, folder).vocab_size


def randomised(model: nn.Module, std: float = 0.4) -> nn.Module:
    """Random weights everywhere, large enough for answers that differ."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=std)
    return model.eval()


@pytest.fixture(scope="session")
def deep(tokenizer) -> nn.Module:
    """A four-tile mini model, whose decoder attends to its images."""
    torch.manual_seed(1)
    sizes = {"image_size": 16, "embed_dim": 32, "vision_layers": 2, "max_num_tiles": 4, "max_seq_len": 128}
    return randomised(mini_vlm(tokenizer[1], **sizes))


@pytest.fixture(scope="session")
def early(tokenizer) -> nn.Module:
    """A four-tile model whose decoder reads images as tokens."""
    torch.manual_seed(1)
    return randomised(tiny_early_vlm(tokenizer[1], embed_dim=32, max_seq_len=128), std=0.6)


@pytest.fixture(scope="session")
def axes(tokenizer) -> nn.Module:
    """A model of images of any size, whose positions have three axes."""
    torch.manual_seed(1)
    sizes = {"patch_size": 4, "embed_dim": 32, "vision_layers": 2, "decoder_layers": 2, "heads": 2, "max_seq_len": 128}
    return randomised(mini_qwen2_5_vl(tokenizer[1], **sizes), std=0.5)


@pytest.fixture(params=["deep", "early", "axes"])
def setup(request, tokenizer) -> Setup:
    folder = tokenizer[0]
    if request.param == "deep":
        transform = mini_transform(folder, image_size=16, max_num_tiles=4, max_seq_len=128)
    elif request.param == "axes":
        limits = {"min_pixels": 256, "max_pixels": 1024}
        transform = mini_qwen2_5_vl_transform(folder, patch_size=4, max_seq_len=128, **limits)
    else:
        transform = tiny_early_transform(folder, max_seq_len=128)
    return Setup(request.getfixturevalue(request.param), transform, PictureSource())
