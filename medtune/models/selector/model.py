"""The selection model: an MLP over text and image features, with or without the CLIP model that makes them.

The official code has features of length 1 each, the text first, and an MLP of widths 512, 512, 512, 1 with a sigmoid
at its end. Here the score is what enters the sigmoid: the order is the same, and differences do not saturate.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from medtune.models.common.family import ModelFamily, StateDict
from medtune.models.common.interface import BatchShape
from medtune.models.selector.sides import FEATURES, SideTransform

MODEL_TYPE = "medtune_selector"
HIDDEN = (512, 512, 512)
_BACKBONE = "backbone."


class SelectionModel(nn.Module):
    """Scores samples; a higher score means that people would rather have the sample.

    Args:
        transform: makes its inputs.
        parts: widths of the text and the image features.
        hidden: widths of the hidden layers of the head.
        rescale: multiply each of the two features, whose length is 1, by the square root of its width, so that its
            numbers are of the order of 1. The official code does not; the head then learns more slowly.
        backbone: a CLIP model of open_clip; None scores stored features.
        rebuilt: builds the backbone again, for buffers that no weight file holds.

    Attributes:
        missing: what the model needs and was not found; only on the meta device, when a run is planned.
    """

    missing: tuple[str, ...] = ()
    scale: Tensor
    images_as_tokens = False
    vocab_size = 0
    longest_text = 0

    def __init__(
        self,
        transform: SideTransform,
        parts: Sequence[int],
        hidden: Sequence[int] = HIDDEN,
        rescale: bool = True,
        backbone: nn.Module | None = None,
        image_size: int = 0,
        rebuilt: Callable[[], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.transform, self.widths, self.hidden, self.rescale = transform, tuple(parts), tuple(hidden), rescale
        self.image_size, self._rebuilt = image_size, rebuilt
        self.backbone = backbone
        layers: list[nn.Module] = []
        width = sum(parts)
        for size in hidden:
            layers += [nn.Linear(width, size), nn.ReLU()]
            width = size
        self.head = nn.Sequential(*layers, nn.Linear(width, 1))
        scale = torch.cat([torch.full((part,), math.sqrt(part) if rescale else 1.0) for part in self.widths])
        self.register_buffer("scale", scale, persistent=False)
        self.family = self._family()

    @property
    def reads_text(self) -> bool:
        """Whether it is planned as a model of text: a head over stored features opens no image."""
        return self.backbone is None

    @property
    def embed_dim(self) -> int:
        """Width of the concatenated features."""
        return sum(self.widths)

    def features(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Features [n, D]: text, then image, each of length 1."""
        if self.backbone is None:
            return inputs[FEATURES]
        backbone: Any = self.backbone
        read = functional.normalize(backbone.encode_text(inputs["tokens"]).float(), dim=-1)
        seen = functional.normalize(backbone.encode_image(inputs["pixels"]).float(), dim=-1)
        return torch.cat([read, seen], dim=-1)

    def scores(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Raw scores [n] of n samples, in fp32; their sigmoid is the official score."""
        return self.scores_of(self.features(inputs))

    def scores_of(self, features: Tensor) -> Tensor:
        """Raw scores [n] of features [n, D]."""
        first: Any = self.head[0]
        return self.head((features * self.scale).to(first.weight.dtype)).squeeze(-1).float()

    def parts(self) -> dict[str, list[str]]:
        """``backbone``, if there is one, and ``head``."""
        names = [name for name, _ in self.named_parameters()]
        found = {
            "backbone": [name for name in names if name.startswith(_BACKBONE)],
            "head": [name for name in names if not name.startswith(_BACKBONE)],
        }
        return {part: members for part, members in found.items() if members}

    def compute(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Call ``fn(self, *args)``; see :meth:`medtune.models.common.early_fusion.EarlyFusionVLM.compute`."""
        return fn(self, *args)

    def output_head(self) -> nn.Module | None:
        """None: one score needs no separate output head."""
        return None

    def image_tokens(self, shape: BatchShape) -> int:
        """0: the features of an image are no tokens."""
        return 0

    def meta_forward(self, shape: BatchShape, embeds_gradient: bool) -> None:
        """Score dummy samples on the meta device; see :class:`medtune.models.common.interface.Trainable`."""
        if self.backbone is None:
            self.scores({FEATURES: torch.empty(shape.batch, self.embed_dim, device="meta")})
            return
        length = int(getattr(self.backbone, "context_length", None) or 77)
        tokens = torch.empty(shape.batch, length, dtype=torch.long, device="meta")
        self.scores({"tokens": tokens, "pixels": torch.empty(shape.batch, 3, shape.size, shape.size, device="meta")})

    def rope_init(self) -> None:
        """Fill buffers that no weight file holds, after a build on the meta device. The name is torchtune's."""
        first: Any = self.head[0]
        fresh: dict[str, Tensor] = {"scale": SelectionModel(self.transform, self.widths, (1,), self.rescale).scale}
        if self._rebuilt is not None:
            fresh |= {f"{_BACKBONE}{name}": value for name, value in self._rebuilt().named_buffers()}
        kept = self.state_dict().keys()
        for name, value in fresh.items():
            if name not in kept:
                owner, _, own_name = name.rpartition(".")
                self.get_submodule(owner).register_buffer(own_name, value.to(first.weight.device), persistent=False)

    def _family(self) -> ModelFamily:
        config = {
            "model_type": MODEL_TYPE,
            "parts": list(self.widths),
            "hidden": list(self.hidden),
            "rescale": self.rescale,
            "inputs": self.transform.settings(),
            "backbone": None if self.backbone is None else self.transform.settings()["model"],
        }
        return ModelFamily(
            name="the selection model",
            model_type=MODEL_TYPE,
            hf_to_tune=_same,
            tune_to_hf=_same,
            hf_config=lambda: config,
            tensors=frozenset(self.state_dict()),
            copies_config=False,
        )


def _same(state: StateDict) -> StateDict:
    return dict(state)
