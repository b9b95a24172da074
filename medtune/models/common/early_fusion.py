"""The interface between training methods and models whose decoder reads image features in place of tokens.

It has the same steps as :class:`medtune.models.common.deep_fusion.DeepFusionVLM`, so that every method runs on both.
"""

from collections.abc import Sequence
from dataclasses import replace as with_changes

import torch
from torch import Tensor, nn
from torchtune.modules import TransformerDecoder

from medtune.errors import ModelError
from medtune.models.common.branch_attention import Mask, prepare_decoder, run_layers, used_positions
from medtune.models.common.family import ModelFamily
from medtune.models.common.interface import BatchShape
from medtune.models.common.parts import sort_parameters
from medtune.models.common.rows import Replacement, override_embeddings, train_adapters_only
from medtune.models.common.shared import SharedVLM

PARTS = ("vision", "projection", "decoder")
_PREFIXES = (("encoder.vision.", "vision"), ("encoder.projection.", "projection"), ("decoder.", "decoder"))


class ImageEncoder(nn.Module):
    """Vision tower and projection: images of one size -> features of the decoder's width.

    Args:
        vision: [n, 3, h, w] -> [n, patches, d_v].
        projection: [n, patches, d_v] -> [n, k, d].
    """

    def __init__(self, vision: nn.Module, projection: nn.Module) -> None:
        super().__init__()
        self.vision = vision
        self.projection = projection

    def forward(self, images: Tensor) -> Tensor:
        """Features [n, k, d] of tiles [n, 3, h, w]."""
        return self.projection(self.vision(images))


def encoded_tiles(vision: dict[str, Tensor]) -> Tensor:
    """Indices of the tiles of a batch that are encoded, in order, among all b * i * t tiles in row-major order.

    Args:
        vision: ``images`` [b, i, t, c, h, w] and ``tiles`` [b, i], real tiles per image.

    Returns:
        [n] with n >= 1: the real tiles, or the first tile if none is real.
    """
    tiles, t = vision["tiles"], vision["images"].shape[2]
    real = torch.arange(t, device=tiles.device) < tiles.unsqueeze(-1)
    index = real.flatten().nonzero().squeeze(1)
    return index if len(index) else index.new_zeros(1)


class EarlyFusionVLM(SharedVLM, nn.Module):
    """A VLM whose decoder reads one image feature in place of each image token (InternVL, LLaVA).

    Parameter names begin with ``encoder.vision.``, ``encoder.projection.`` and ``decoder.``, and are the keys of the
    state dict.

    Args:
        decoder: a torchtune decoder without fusion layers.
        encoder: tiles [n, 3, h, w] -> features [n, k, d]; holds ``vision`` and ``projection``.
        image_id: the token that stands for one feature. It may lie beyond the vocabulary: where there are
            features, it is not embedded.
        family: converters and config of this model.
        adapters_only: train nothing but LoRA parameters.
    """

    images_as_tokens = True

    def __init__(
        self,
        decoder: TransformerDecoder,
        encoder: ImageEncoder,
        *,
        image_id: int,
        family: ModelFamily,
        adapters_only: bool = False,
    ) -> None:
        super().__init__()
        prepare_decoder(decoder)
        self.decoder = decoder
        self.encoder = encoder
        self.image_id = image_id
        self.family = family
        if adapters_only:
            train_adapters_only(self)

    @property
    def embed_dim(self) -> int:
        """Width of the decoder's embeddings."""
        return self.decoder.tok_embeddings.embedding_dim

    def encode(self, vision: dict[str, Tensor]) -> Tensor:
        """Turn a batch's ``vision`` tensors into features.

        Only real tiles are encoded. A batch without real tiles encodes one placeholder, so that every process of a
        sharded run takes the same steps.

        Args:
            vision: ``images`` [b, i, t, c, h, w] and ``tiles`` [b, i] (real tiles per image, 0 for a padding image).

        Returns:
            Features [b, i * t * k, d] in that order, k per tile; zero where there is no tile.
        """
        images = vision["images"]
        b, i, t = images.shape[:3]
        index = encoded_tiles(vision)
        encoded = self.encode_tiles(images.flatten(0, 2)[index], vision)
        features = encoded.new_zeros(b * i * t, *encoded.shape[1:])
        return features.index_copy(0, index.to(encoded.device), encoded).view(b, -1, encoded.shape[-1])

    def encode_tiles(self, tiles: Tensor, vision: dict[str, Tensor]) -> Tensor:
        """Features [n, k, d] of the tiles [n, 3, h, w] of a batch's ``vision`` tensors that exist."""
        return self.encoder(tiles)

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
            vision_mask: [b, s_e], True at the features that exist. The k-th image token of a row takes its k-th such
                feature. None: all exist. A family whose positions depend on where a feature stands in its image holds
                that here, as a number other than 0.
            replace: (where [b, s] bool, rows [k, d]): token embeddings to overwrite, rows in row-major order of
                ``where``. Gradients reach ``rows``.
            mask: self-attention mask [b, s, keys], True = may attend, or one of branches; None is causal.
            input_pos: the number of each token in its text [b, s]; None counts from 0. Also what :meth:`positions`
                returns.
            keep: columns [b, n] whose states are wanted; the last layer computes no others. None: all.

        Returns:
            Final hidden states [b, s, d], or [b, n, d] of the columns ``keep``.

        Raises:
            ModelError: if ``tokens`` are longer than the model allows, a row's image tokens and features differ in
                number, or ``replace`` does not hold one row per place.
        """
        decoder = self.decoder
        if (length := used_positions(tokens, mask)) > decoder.max_seq_len:
            raise ModelError(f"a batch of {length} tokens is longer than the model's {decoder.max_seq_len}")
        image = tokens == self.image_id
        # A generated image token stands for no feature; it is embedded as any other, as in transformers.
        embedded = features is None and self.image_id < decoder.tok_embeddings.num_embeddings
        h = decoder.tok_embeddings(tokens if embedded else tokens.masked_fill(image, 0))
        if features is not None:
            h = _place_features(h, image, features, vision_mask)
        if replace is not None:
            h = override_embeddings(h, *replace)
        positions = self.rotary_input(self.positions(tokens, vision_mask, input_pos))
        masks = self.layer_masks(mask, image if features is not None else None, tokens)
        return run_layers(decoder, h, keep, mask=masks, input_pos=positions)

    def layer_masks(self, mask: Mask, image: Tensor | None, tokens: Tensor) -> Mask | Sequence[Mask]:
        """The masks of the decoder's layers.

        Args:
            mask: as for :meth:`hidden`.
            image: [b, s], True at the image tokens of this pass; None if no image is read in it.
            tokens: [b, s].

        Returns:
            One mask for all layers, or one for each. Families with layers of other kinds override this.
        """
        return mask

    def parts(self) -> dict[str, list[str]]:
        """Sort every parameter into exactly one part.

        Returns:
            part -> names as in ``named_parameters``: ``vision`` is the image transformer, ``projection`` what maps
            its output to the decoder's width, ``decoder`` the language model; ``adapter.vision`` and so on hold the
            LoRA parameters of a part.

        Raises:
            ModelError: if a parameter belongs to none of them (something was attached to the model).
        """
        return sort_parameters(self, PARTS, lambda name, _: _part(name))

    def image_tokens(self, shape: BatchShape) -> int:
        """Number of tokens that the images of one row add to it."""
        with torch.no_grad():
            return self.encode(self.meta_vision(with_changes(shape, batch=1))).shape[1]

    def meta_vision(self, shape: BatchShape) -> dict[str, Tensor]:
        """Inputs of :meth:`encode` on the meta device; numbers of tiles have values because shapes depend on them."""
        b, i, t = shape.batch, shape.images, shape.tiles
        return {
            "images": torch.empty(b, i, t, 3, shape.size, shape.size, device="meta"),
            "tiles": torch.full((b, i), t),
        }

    def setup_caches(
        self, batch_size: int, dtype: torch.dtype, *, encoder_max_seq_len: int, decoder_max_seq_len: int
    ) -> None:
        """Make key-value caches. Features are part of the tokens, so ``encoder_max_seq_len`` is not used."""
        self.decoder.setup_caches(batch_size, dtype, decoder_max_seq_len=decoder_max_seq_len)

    def caches_are_setup(self) -> bool:
        """Whether there are caches."""
        return self.decoder.caches_are_setup()

    def caches_are_enabled(self) -> bool:
        """Whether there are caches and they are in use."""
        return self.decoder.caches_are_enabled()

    def reset_caches(self) -> None:
        """Empty the caches."""
        self.decoder.reset_caches()


def _place_features(h: Tensor, image: Tensor, features: Tensor, exists: Tensor | None) -> Tensor:
    """Put the k-th existing feature of a row at the position of its k-th image token.

    This gathers and does not use boolean indexing. Shapes then do not depend on values, and a zero gradient reaches the
    encoder even if a batch has no image token: sharded training waits for a gradient on every process.
    """
    exists = features.new_ones(features.shape[:2], dtype=torch.bool) if exists is None else exists.bool()
    tokens, available = image.sum(dim=1), exists.sum(dim=1)
    if not h.is_meta and not torch.equal(tokens, available):
        row = int((tokens != available).nonzero()[0])
        raise ModelError(
            f"row {row} of the batch has {int(tokens[row])} image tokens for {int(available[row])} image features; the "
            "transform's image size, patch size or image token does not belong to this model"
        )
    order = exists.int().argsort(dim=1, descending=True, stable=True)
    turn = (image.cumsum(dim=1) - 1).clamp(0, order.shape[1] - 1)
    index = order.gather(1, turn).unsqueeze(-1).expand(*turn.shape, features.shape[-1])
    return torch.where(image.unsqueeze(-1), features.gather(1, index).to(h.dtype), h)


def _part(name: str) -> str:
    for prefix, part in _PREFIXES:
        if name.startswith(prefix):
            return part
    raise ModelError(f"parameter {name} is in no part of the model ({', '.join(PARTS)})")
