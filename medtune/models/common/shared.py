"""Methods that both kinds of vision-language models share."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from medtune.models.common.interface import BatchShape
from medtune.models.lora.merge import adapters_off


class _MetaEmbeddings(nn.Module):
    """Replaces the word embeddings on the meta device, where a lookup cannot depend on the data."""

    def __init__(self, width: int, trained: bool) -> None:
        super().__init__()
        self.width, self.trained = width, trained

    def forward(self, tokens: Tensor) -> Tensor:
        shape = (*tokens.shape, self.width)
        return torch.empty(shape, device=tokens.device, requires_grad=self.trained) * 1.0


class SharedVLM:
    """Methods of a VLM that do not depend on how images reach the decoder; a mixin for both kinds.

    Attributes:
        missing: empty, because a VLM needs no file to be built.
        reads_text: True.
        whole_images: False: a prompt may be read in any parts.
    """

    decoder: Any
    family: Any
    encode: Callable[..., Tensor]
    hidden: Callable[..., Tensor]
    modules: Callable[..., Any]
    missing: tuple[str, ...] = ()
    reads_text: bool = True
    images_as_tokens: bool = False
    whole_images: bool = False

    def logits(self, hidden: Tensor) -> Tensor:
        """Vocabulary logits of final hidden states: [..., d] -> fp32 [..., V]."""
        return self.decoder.output(hidden).float()

    def compute(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Call ``fn(self, *args)``. Sharded training registers this method as the model's one forward entry."""
        return fn(self, *args)

    def output_head(self) -> nn.Module | None:
        """The layer that computes logits. If it is tied to the word embeddings, the inner module that takes hooks."""
        output = self.decoder.output
        return output if isinstance(output, nn.Module) else output.linear

    @property
    def vocab_size(self) -> int:
        """Number of logits per token; a tied output layer has no weight, so the embedding table is counted."""
        output = self.decoder.output
        owner: Any = output if isinstance(output, nn.Module) else self.decoder.tok_embeddings
        return int(owner.weight.shape[0])

    @property
    def longest_text(self) -> int:
        """The most tokens that a row may have."""
        return int(self.decoder.max_seq_len)

    @property
    def image_size(self) -> int:
        """Side of a tile in pixels, from the model's published config."""
        size = self.family.hf_config()["vision_config"]["image_size"]
        return int(size if isinstance(size, int) else size[0])

    def adapters_off(self) -> AbstractContextManager[None]:
        """A context in which the model computes as its base, without a copy; see :mod:`medtune.models.lora.merge`."""
        return adapters_off(self)  # type: ignore[arg-type]

    def positions(self, tokens: Tensor, vision_mask: Tensor | None, input_pos: Tensor | None) -> Tensor | None:
        """Positions of tokens, from their numbers in the text; see :class:`medtune.models.common.interface.VLM`."""
        return input_pos

    def saved_positions(self, vision_mask: Tensor) -> Tensor | None:
        """None: every image takes as many positions as it has tokens."""
        return None

    def rotary_input(self, positions: Tensor | None) -> Tensor | None:
        """What the decoder's layers take as ``input_pos``, made of :meth:`positions` once for all of them."""
        return positions

    def image_tokens(self, shape: BatchShape) -> int:
        """0: the decoder reads images through cross-attention, not as tokens."""
        return 0

    def meta_vision(self, shape: BatchShape) -> dict[str, Tensor]:
        """Inputs of :meth:`encode` on the meta device; numbers that determine shapes have values."""
        raise NotImplementedError

    def meta_forward(self, shape: BatchShape, embeds_gradient: bool) -> Tensor:
        """Run encoder and decoder on the meta device; see :class:`medtune.models.common.interface.Trainable`.

        Returns:
            The image features.
        """
        embeddings = self.decoder.tok_embeddings
        model: Any = self
        width = model.embed_dim
        trained = any(parameter.requires_grad for parameter in embeddings.parameters())
        self.decoder.tok_embeddings = _MetaEmbeddings(width, embeds_gradient or trained)
        self._empty_rotary_tables()
        b, meta = shape.batch, torch.device("meta")
        try:
            features = self.encode(self.meta_vision(shape))
            rows = (b,) if self.images_as_tokens else (b, shape.tokens)
            mask = torch.empty(*rows, features.shape[1], dtype=torch.bool, device=meta)
            self.hidden(torch.empty(b, shape.tokens, dtype=torch.long, device=meta), features, vision_mask=mask)
        finally:
            self.decoder.tok_embeddings = embeddings
        return features

    def _empty_rotary_tables(self) -> None:
        """Empty tables for rotary positions whose values cannot be computed on the meta device."""
        for module in self.modules():
            if getattr(module, "is_cache_built", True) is False:
                table = torch.empty(module.max_seq_len, module.dim // 2, 2, device="meta")
                module.register_buffer("cache", table, persistent=False)
                module.is_cache_built = True
