"""What the trainer, the plan and the training methods ask of a model.

:class:`Trainable` is enough for the trainer and ``medtune plan``: a classifier of images, a selection model and a
router of questions are trained by the same loop. :class:`VLM` adds what training methods and generation ask of a
vision-language model. Both are structural: a model class need not inherit from them.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from medtune.models.common.family import ModelFamily
from medtune.models.common.rows import Replacement


@dataclass(frozen=True)
class BatchShape:
    """Sizes of a micro-batch: ``batch`` rows of ``tokens``, each with ``images`` of ``tiles`` tiles, ``size`` wide.

    Where images are read as tokens, ``tokens`` counts those too.
    """

    batch: int
    tokens: int
    images: int
    tiles: int
    size: int


class Trainable(Protocol):
    """A model that the trainer can train; always an ``nn.Module`` too.

    Attributes:
        family: how its weights are written and read.
        missing: what was not found although the model needs it, as sentences; only when a run is planned.
        reads_text: whether it reads tokens; a model of images alone does not.
        images_as_tokens: whether images stand among its tokens (early fusion) and make its rows longer.
    """

    family: ModelFamily
    missing: tuple[str, ...]
    reads_text: bool
    images_as_tokens: bool

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """As every ``nn.Module``'s; so are ``modules``, ``state_dict``, ``train`` and ``eval``."""
        ...

    def modules(self) -> Iterator[nn.Module]:
        """Every module of it."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Its tensors by name."""
        ...

    def train(self, mode: bool = True) -> Any:
        """Switch dropout on or off."""
        ...

    def eval(self) -> Any:
        """Switch dropout off."""
        ...

    @property
    def embed_dim(self) -> int:
        """Width of the embeddings that a method may replace or read."""
        ...

    @property
    def image_size(self) -> int:
        """Side of an image (or of one of its tiles) in pixels."""
        ...

    @property
    def vocab_size(self) -> int:
        """Logits per token; 0 where there is no vocabulary."""
        ...

    def parts(self) -> dict[str, list[str]]:
        """Part -> names of its parameters; every parameter is in exactly one part."""
        ...

    def compute(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Call ``fn(self, *args)``; the one forward entry that sharded training knows."""
        ...

    def output_head(self) -> nn.Module | None:
        """The module that makes logits of hidden states; None where that is no separate module."""
        ...

    def image_tokens(self, shape: BatchShape) -> int:
        """Tokens that the images of one row of ``shape`` add to it; 0 where images are no tokens."""
        ...

    def meta_forward(self, shape: BatchShape, embeds_gradient: bool) -> Tensor | None:
        """Run one forward pass on made-up inputs of this shape, on the meta device.

        The plan counts what autograd keeps meanwhile.

        Args:
            shape: sizes of the micro-batch.
            embeds_gradient: whether a gradient must reach the embedded tokens although no embedding is trained.

        Returns:
            Image features that all layers of the decoder share, if there are any.
        """
        ...


class VLM(Trainable, Protocol):
    """A vision-language model of any family; the methods' arguments are told where they are implemented."""

    decoder: Any
    encoder: Any
    training: bool

    def encode(self, vision: dict[str, Tensor]) -> Tensor:
        """Image features [b, s_e, d] of a batch's ``vision`` tensors."""
        ...

    def hidden(
        self,
        tokens: Tensor,
        features: Tensor | None = None,
        *,
        vision_mask: Tensor | None = None,
        replace: Replacement | None = None,
        mask: Tensor | None = None,
        input_pos: Tensor | None = None,
    ) -> Tensor:
        """Final hidden states [b, s, d]."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """Vocabulary logits in fp32, [..., d] -> [..., V]."""
        ...

    def adapters_off(self) -> AbstractContextManager[None]:
        """Switch every adapter off while the block runs: the model is then its base."""
        ...
