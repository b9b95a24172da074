"""The interface between training methods and models whose decoder reads images through cross-attention."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torchtune.modules import TransformerDecoder
from torchtune.modules.model_fusion import DeepFusionModel, FusionEmbedding, FusionLayer

from medtune.errors import ModelError
from medtune.models.common.branch_attention import Mask, prepare_decoder, run_layers, used_positions
from medtune.models.common.family import ModelFamily
from medtune.models.common.interface import BatchShape
from medtune.models.common.parts import sort_parameters
from medtune.models.common.rows import Replacement, override_embeddings, train_adapters_only
from medtune.models.common.shared import SharedVLM

PARTS = ("vision", "projection", "fusion", "decoder")


class DeepFusionVLM(SharedVLM, DeepFusionModel):
    """A torchtune deep-fusion model whose forward pass is available in the steps that training methods need.

    ``forward`` is torchtune's. ``encode``, ``hidden`` and ``logits`` are its three steps, so that an image can be
    encoded once for several texts, embeddings can be replaced by learned vectors, and logits can be computed in chunks.

    Args:
        decoder: the language model with its fusion layers.
        encoder: vision transformer and projection.
        family: converters and config of this model.
        adapters_only: train nothing but LoRA parameters; otherwise everything is trainable until a recipe freezes
            parts by name (see :meth:`parts`).
        padding_is_read: the decoder attends to features of padding images, so :meth:`encode` must encode them too.
    """

    def __init__(
        self,
        decoder: TransformerDecoder,
        encoder: nn.Module,
        *,
        family: ModelFamily,
        adapters_only: bool = False,
        padding_is_read: bool = False,
    ) -> None:
        prepare_decoder(decoder)
        super().__init__(decoder, encoder, decoder_trainable=True, encoder_trainable=True, fusion_trainable=True)
        self.family = family
        self._padding_is_read = padding_is_read
        if adapters_only:
            train_adapters_only(self)

    @property
    def embed_dim(self) -> int:
        """Width of the decoder's embeddings."""
        return self.decoder.num_heads * self.decoder.head_dim

    def encode(self, vision: dict[str, Tensor]) -> Tensor:
        """Turn a batch's ``vision`` tensors into features.

        The encoder runs once, on the real images alone. In a batch without any it encodes one padding image, because
        sharded training waits for a gradient on every process.

        Args:
            vision: ``images`` [b, i, t, c, h, w], ``aspect_ratio`` [b, i, 2] and ``tiles`` [b, i] (real tiles per
                image, 0 for a padding image), as the collator gives them.

        Returns:
            Features [b, s_e, d] with s_e = i * t * tokens per tile, in that order; zeros, which no token sees, for
            padding images.
        """
        chosen, (rows, images) = self.encoded_images(vision), vision["images"].shape[:2]
        if len(chosen) == rows * images:
            return self.encoder(**vision)
        found = self.encoder(**{name: value.flatten(0, 1)[chosen].unsqueeze(1) for name, value in vision.items()})
        every = found.new_zeros(rows * images, *found.shape[1:]).index_copy(0, chosen, found)
        return every.unflatten(0, (rows, images)).flatten(1, 2)

    def encoded_images(self, vision: dict[str, Tensor]) -> Tensor:
        """Indices of the images of a batch that :meth:`encode` gives to the encoder, among all b * i images.

        Args:
            vision: as for :meth:`encode`.

        Returns:
            [n] with n >= 1: the real images, or the first image if none is real; all if padding is read.
        """
        tiles = vision.get("tiles")
        if tiles is None or tiles.is_meta or self._padding_is_read:
            return torch.arange(vision["images"].shape[:2].numel(), device=vision["images"].device)
        real = tiles.flatten().nonzero().squeeze(1)
        return real if len(real) else real.new_zeros(1)

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
        """Run the decoder up to and including its final norm.

        Args:
            tokens: token ids [b, s].
            features: from :meth:`encode`, or None for text alone (and for cached decoding steps).
            vision_mask: [b, s, s_e], True where a token may attend to a feature. A row of False passes through the
                fusion layers unchanged.
            replace: (where [b, s] bool, rows [k, d]): token embeddings to overwrite, rows in row-major order of
                ``where``. Gradients reach ``rows``.
            mask: self-attention mask [b, s, keys], True = may attend, or one of branches; None is causal.
            input_pos: positions [b, s]; None counts from 0.
            keep: columns [b, n] whose states are wanted; the last layer computes no others. None: all.

        Returns:
            Final hidden states [b, s, d], or [b, n, d] of the columns ``keep``.

        Raises:
            ModelError: if ``tokens`` are longer than the model allows, or ``replace`` does not hold one row per place.
        """
        decoder = self.decoder
        if (length := used_positions(tokens, mask)) > decoder.max_seq_len:
            raise ModelError(f"a batch of {length} tokens is longer than the model's {decoder.max_seq_len}")
        h = decoder.tok_embeddings(tokens)
        if replace is not None:
            h = override_embeddings(h, *replace)
        return run_layers(
            decoder, h, keep, mask=mask, encoder_input=features, encoder_mask=vision_mask, input_pos=input_pos
        )

    def parts(self) -> dict[str, list[str]]:
        """Sort every parameter into exactly one part.

        Returns:
            part -> names as in ``named_parameters``. ``vision`` is the image transformer, ``projection`` what maps
            its output to the decoder's width, ``fusion`` the cross-attention layers and the embeddings of image
            tokens, ``decoder`` the language model; ``adapter.vision`` and so on hold the LoRA parameters of a part.

        Raises:
            ModelError: if a parameter belongs to none of them (something was attached to the model).
        """
        # By identity, not by name: activation checkpointing inserts a level into names, on which torchtune's own
        # get_fusion_params fails.
        fusion = {id(p) for module in _fusion_modules(self.decoder) for p in module.parameters()}

        def part_of(name: str, parameter: nn.Parameter) -> str:
            if name.startswith("decoder."):
                return "fusion" if id(parameter) in fusion else "decoder"
            return _encoder_part(name)

        return sort_parameters(self, PARTS, part_of)

    def meta_vision(self, shape: BatchShape) -> dict[str, Tensor]:
        """Inputs of :meth:`encode` on the meta device; aspect ratios have values because they are looked up."""
        b, i, t = shape.batch, shape.images, shape.tiles
        return {
            "images": torch.empty(b, i, t, 3, shape.size, shape.size, device="meta"),
            "tiles": torch.empty(b, i, dtype=torch.long, device="meta"),
            "aspect_ratio": torch.tensor([t, 1]).expand(b, i, 2),
        }


def _fusion_modules(decoder: nn.Module) -> Iterator[nn.Module]:
    for module in decoder.modules():
        if isinstance(module, FusionLayer):
            yield module.fusion_layer
        elif isinstance(module, FusionEmbedding):
            yield module.fusion_embedding


def _encoder_part(name: str) -> str:
    for prefix, part in (("encoder.clip.", "vision"), ("encoder.projection.", "projection")):
        if name.startswith(prefix):
            return part
    raise ModelError(f"parameter {name} is in no part of the model ({', '.join(PARTS)})")
