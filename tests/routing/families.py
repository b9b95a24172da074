"""The mini model of each family, its adapters, and what each adapter alone answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from medtune.generation.engine.generator import Generator
from medtune.generation.requests import Generation, Request
from medtune.models import mini
from medtune.models.lora.bank import _linear_maps
from medtune.models.lora.merge import Adapter
from tests.generation.conftest import PictureSource, Setup, randomised
from tests.models.banked import alone, random_adapter

SIZES = {"image_size": 32, "embed_dim": 32, "vision_layers": 2, "decoder_layers": 2, "heads": 2, "max_seq_len": 256}
NF4 = {**SIZES, "embed_dim": 128, "decoder_layers": 1}
"""The least width at which torchao quantises a linear map."""
ALL = ("q_proj", "k_proj", "v_proj", "output_proj")
TOKENS = 7


@dataclass(frozen=True)
class Family:
    """How a family's mini model is built."""

    builder: str
    transform: Callable[..., Any]
    model: dict[str, Any]
    tiles: dict[str, Any]
    std: float


FAMILIES = {
    "llama3_2_vision": Family("mini_vlm", mini.mini_transform, {"max_num_tiles": 2}, {"max_num_tiles": 2}, 0.3),
    "internvl_internlm2": Family("mini_internvl", mini.mini_internvl_transform, {}, {"max_num_tiles": 2}, 0.4),
    "internvl_qwen2": Family(
        "mini_internvl", mini.mini_internvl_transform, {"decoder": "qwen2"}, {"max_num_tiles": 2}, 0.4
    ),
    "llava": Family("mini_llava", mini.mini_llava_transform, {}, {}, 0.4),
    "gemma3": Family("mini_gemma3", mini.mini_gemma3_transform, {"window": 24}, {}, 0.1),
    "sq_llava": Family("mini_sq_llava", mini.mini_llava_transform, {}, {}, 0.3),
    "qwen2_5_vl": Family(
        "mini_qwen2_5_vl", mini.mini_qwen2_5_vl_transform, {"patch_size": 4}, {"patch_size": 4, "max_pixels": 1024}, 0.6
    ),
}
KINDS = [(name, quantized) for quantized in (False, True) for name in FAMILIES]


class Case:
    """A base model with three adapters of unlike rank, scale and place.

    Args:
        name: A family.
        quantized: Whether the base is NF4.
        tokenizer: Folder and size of the vocabulary.
        where: The part that the adapters are in.
    """

    def __init__(self, name: str, quantized: bool, tokenizer: tuple[str, int], where: str = "decoder") -> None:
        self.family, self.quantized, self.vocabulary = FAMILIES[name], quantized, tokenizer[1]
        self.sizes = {**(NF4 if quantized else SIZES), **self.family.model}
        images = {"image_size": 32}
        if name == "qwen2_5_vl":  # its images have any size
            images = {}
            del self.sizes["image_size"]
        torch.manual_seed(2)
        # narrower by the square root of the width: logits, and so rounding, stay of one size
        std = self.family.std * (32 / self.sizes["embed_dim"]) ** 0.5
        self.plain = randomised(getattr(mini, self.family.builder)(self.vocabulary, **self.sizes), std)
        if name == "gemma3":  # its output is its embeddings: with large ones a token repeats itself
            self.plain.decoder.tok_embeddings.weight.data.mul_(0.3)
        self.base: Any = self.quantized_base(1) if quantized else self.plain
        transform = self.family.transform(tokenizer[0], max_seq_len=256, **images, **self.family.tiles)
        self.setup = Setup(self.base, transform, PictureSource())
        self.adapters = self._adapters(where)

    def quantized_base(self, rank: int, alpha: float = 1.0) -> Any:
        """The base in NF4, with LoRA layers of its own."""
        builder = getattr(mini, f"qlora_{self.family.builder}")
        model = builder(
            vocab_size=self.vocabulary, lora_attn_modules=list(ALL), apply_lora_to_mlp=True, lora_rank=rank,
            lora_alpha=alpha, **self.sizes,
        )  # fmt: skip
        model.load_state_dict(self.plain.state_dict(), strict=False)
        return model.eval()

    def _adapters(self, where: str) -> dict[str, Adapter]:
        # with NF4, the layers that the builder adapts, so that torchtune can compute each adapter alone
        maps = [p for p in _linear_maps(self.plain) if p.startswith(where) and p != "decoder.output"]
        if self.quantized:
            lora = {name.rpartition(".lora_a")[0] for name in self.base.state_dict() if ".lora_a." in name}
            maps = [p for p in maps if p in lora]
        attention = maps if self.quantized else [p for p in maps if ".mlp." not in p]
        return {
            "counting": random_adapter(self.plain, maps, 4, 4.0, seed=1),
            "detection": random_adapter(self.plain, attention, 2, 6.0, seed=2),
            "all": random_adapter(self.plain, maps, 1, 3.0, seed=3),
        }

    def alone(self, name: str | None) -> Any:
        """A model with one adapter, computed by torchtune's LoRA layers; None is the base."""
        if name is None:
            return self.base
        adapter = self.adapters[name]
        if not self.quantized:
            return alone(self.plain, adapter)
        strength = next(iter(adapter.strengths.values()))
        model = self.quantized_base(strength.rank, strength.alpha)
        model.load_state_dict(adapter.state, strict=False)
        return model

    @cached_property
    def requests(self) -> list[Request]:
        """Text alone, one or two images, one image for several, several lengths, some with options to be scored."""
        return [
            replace(request, max_new_tokens=0 if i == 3 else 4 + i % 4)
            for i, request in enumerate(self.setup.requests(9))
        ]

    @cached_property
    def expected(self) -> dict[str | None, dict[str, Generation]]:
        """The answer of each adapter alone to each request alone."""
        return {
            name: {r.id: r for r in generate(self.alone(name), self.setup.transform, self.requests, batch_size=1)}
            for name in (None, *self.adapters)
        }


def generate(model: Any, transform: Any, requests: Sequence[Request], **options: Any) -> list[Generation]:
    """Answers of the generator."""
    return list(Generator(model, transform, max_new_tokens=TOKENS, **options)(requests))
