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
from medtune.models.mini import mini_transform, mini_vlm, train_mini_tokenizer

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
        mask = torch.cat([mask, mask[:, -1:].expand(-1, len(continuation), -1)], dim=1)
        tokens = torch.tensor([item["tokens"] + continuation])
        features = self.model.encode(batch["vision"])
        return self.model.logits(self.model.hidden(tokens, features, vision_mask=mask))[0]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> tuple[nn.Module, str]:
    """A four-tile mini model with random weights everywhere, and the folder of its tokenizer."""
    folder = tmp_path_factory.mktemp("tokenizer")
    vocab_size = train_mini_tokenizer(["What is the cell size? big small nucleus color"], 300, folder).vocab_size
    torch.manual_seed(1)
    model = mini_vlm(vocab_size, image_size=16, embed_dim=32, vision_layers=2, max_num_tiles=4, max_seq_len=128)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model.eval(), str(folder)


@pytest.fixture
def setup(tiny) -> Setup:
    model, folder = tiny
    transform = mini_transform(folder, image_size=16, max_num_tiles=4, max_seq_len=128)
    return Setup(model, transform, PictureSource())
