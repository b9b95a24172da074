"""The interfaces of a model that the trainer, the plan and the training methods use.

:class:`Trainable` is enough for the trainer and ``medtune plan``: an image classifier, a selection model and a
question router are trained by the same loop. :class:`VLM` adds what training methods and generation need from a
vision-language model. Both are structural: a model class need not inherit from them.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from medtune.models.common.branch_attention import Mask
from medtune.models.common.family import ModelFamily
from medtune.models.common.rows import Replacement


@dataclass(frozen=True)
class BatchShape:
    """Sizes of a micro-batch.

    It has ``batch`` rows of ``tokens`` tokens, and per row ``images`` images of ``tiles`` tiles, each ``size`` pixels
    wide. If images are read as tokens, ``tokens`` includes the image tokens.
    """

    batch: int
    tokens: int
    images: int
    tiles: int
    size: int


class Trainable(Protocol):
    """A model that the trainer can train. It must also be an ``nn.Module``.

    Attributes:
        family: how its weights are written and read.
        missing: what the model needs and was not found, as sentences; only when a run is planned.
        reads_text: whether it reads tokens; a model of images alone does not.
        images_as_tokens: whether images are part of its tokens (early fusion) and make its rows longer.
    """

    family: ModelFamily
    missing: tuple[str, ...]
    reads_text: bool
    images_as_tokens: bool

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """As in every ``nn.Module``; the same holds for ``modules``, ``state_dict``, ``train`` and ``eval``."""
        ...

    def modules(self) -> Iterator[nn.Module]:
        """All modules of the model."""
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
        """Side of an image (or of one of its tiles) in pixels; 0 for a model that reads text alone."""
        ...

    @property
    def vocab_size(self) -> int:
        """Number of logits per token; 0 if there is no vocabulary."""
        ...

    @property
    def longest_text(self) -> int:
        """The most tokens that a row may have, those of images among them; 0 for a model that reads no tokens."""
        ...

    def parts(self) -> dict[str, list[str]]:
        """Part -> names of its parameters; every parameter is in exactly one part."""
        ...

    def compute(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Call ``fn(self, *args)``; sharded training knows no other forward entry point."""
        ...

    def output_head(self) -> nn.Module | None:
        """The module that computes logits from hidden states; None if there is no separate module."""
        ...

    def image_tokens(self, shape: BatchShape) -> int:
        """Number of tokens that the images of one row of ``shape`` add to it; 0 if images are not tokens."""
        ...

    def meta_forward(self, shape: BatchShape, embeds_gradient: bool) -> Tensor | None:
        """Run one forward pass on dummy inputs of this shape on the meta device.

        The plan counts the tensors that autograd keeps during this pass.

        Args:
            shape: sizes of the micro-batch.
            embeds_gradient: whether a gradient must reach the embedded tokens although no embedding is trained.

        Returns:
            Image features that all layers of the decoder share, if there are any.
        """
        ...


class VLM(Trainable, Protocol):
    """A vision-language model of any family; the arguments are described where the methods are implemented.

    Attributes:
        whole_images: whether the tokens of an image see one another, so that an image is always read in one pass.
    """

    whole_images: bool
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
        mask: Mask = None,
        input_pos: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """Final hidden states [b, s, d], or [b, n, d] of the columns ``keep``."""
        ...

    def positions(self, tokens: Tensor, vision_mask: Tensor | None, input_pos: Tensor | None) -> Tensor | None:
        """Positions of tokens, from their numbers in the text.

        Families with positions on several axes return [b, s, axes]. ``hidden`` calls this itself; a caller that joins
        several texts in one row does so before, and gives the result to ``hidden``.
        """
        ...

    def saved_positions(self, vision_mask: Tensor) -> Tensor | None:
        """By how many positions each row's images are shorter than their tokens, [b]; None if they are not.

        When a text is read in parts, this is subtracted from the numbers of the tokens after images of earlier parts.
        """
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """Vocabulary logits in fp32, [..., d] -> [..., V]."""
        ...

    def adapters_off(self) -> AbstractContextManager[None]:
        """Switch every adapter off while the block runs: the model is then its base."""
        ...
