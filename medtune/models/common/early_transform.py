"""Transform a sample into model inputs, for models that read an image as tokens within the text."""

from collections.abc import Container, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from medtune.data.features import EncodedPicture
from medtune.data.items import Sizes
from medtune.data.sample import Sample
from medtune.errors import DataError
from medtune.models.common.chat_template import (
    IGNORE_INDEX,
    LEARNED_ROLES,
    ChatTemplate,
    SampleTooLong,
    answer_ids,
    image_places,
    lay_out,
    question_flags,
)
from medtune.models.common.early_collate import collate_early
from medtune.models.common.padding import PadSide
from medtune.models.common.tokenizer import TextTokenizer, single_token, special_ids


class Tiler(Protocol):
    """Cuts an image into tiles.

    Attributes:
        size: side of a tile in pixels.
        max_tiles: maximum number of tiles of one image, an overview tile included.
    """

    size: int
    max_tiles: int

    def __call__(self, image: Image.Image) -> Tensor:
        """Tiles [t, 3, size, size], normalised, in fp32."""

    def count(self, width: int, height: int) -> int:
        """Number of tiles of an image of this size."""

    def settings(self) -> dict[str, Any]:
        """The settings that determine the tiles; tilers with equal settings give equal tiles."""


class EarlyFusionTransform:
    """Tokens, labels and tiles of a sample for models such as InternVL and LLaVA. Picklable; stateless.

    In the text an image is ``image_start``, then ``image_id`` once per feature, then ``image_end``.

    Args:
        tokenizer: the family's tokenizer.
        template: the chat format.
        tiler: cuts images into tiles.
        image_id: the token that stands for one image feature.
        tokens_per_tile: features that the encoder gives for one tile.
        image_start: ids before an image's tokens.
        image_end: ids after them.
        max_seq_len: maximum number of tokens of one sample, image tokens included.
        placeholder_text: one character that is one token; learned vectors replace its embedding.
        supervise_header: whether the text before an answer is supervised too.

    Attributes:
        fewer_tokens: what to do about an image of too many tokens, for messages; ``{size}`` is the side of a tile.
        dtype: dtype of the images, bf16 or fp32; set it to the model's.
        feature_width: None if images are pixels; if they are already encoded, the width d of their features.
        pad_id: fills short rows of a batch.
        stop_ids: tokens that end an answer.
        placeholder_id: the placeholder's id.

    Raises:
        ModelError: if the tokenizer lacks a token of the template, or the placeholder is not one token each time.
    """

    fewer_tokens = "allow fewer tiles"

    def __init__(
        self,
        tokenizer: TextTokenizer,
        template: ChatTemplate,
        tiler: Tiler,
        *,
        image_id: int,
        tokens_per_tile: int,
        image_start: Sequence[int] = (),
        image_end: Sequence[int] = (),
        max_seq_len: int,
        placeholder_text: str,
        supervise_header: bool = False,
    ) -> None:
        self.tokenizer, self.template, self.tiler = tokenizer, template, tiler
        self.image_id, self.tokens_per_tile = image_id, tokens_per_tile
        self.image_start, self.image_end = tuple(image_start), tuple(image_end)
        self.max_seq_len = max_seq_len
        self.supervise_header = supervise_header
        self.dtype = torch.float32
        self.feature_width: int | None = None
        special_ids(tokenizer, template.special)
        self.pad_id = tokenizer.special_id(template.pad)
        self.stop_ids = special_ids(tokenizer, template.stop)
        self.placeholder_text = placeholder_text
        self.placeholder_id = single_token(tokenizer, placeholder_text, after_space=template.after_space)

    def __call__(
        self, sample: Sample, images: Sequence[Image.Image | EncodedPicture], *, inference: bool = False
    ) -> dict:
        """Transform one sample.

        Args:
            sample: messages, and as many image names as there are ``images``.
            images: decoded images in order, or all of them already encoded.
            inference: keep the messages up to the last question and open the next speaker's turn.

        Returns:
            ``id``, ``tokens`` and ``labels`` (lists of equal length, -100 where not supervised), ``images`` (one
            tensor [tiles, 3, h, w] each, or [tiles, k, d] for an encoded image), and for a sample with a virtual user
            ``asked`` (True at the supervised tokens of its questions).

        Raises:
            SampleTooLong: if the sample has more than ``max_seq_len`` tokens; nothing is cut.
            DataError: if images and places for them differ in number, or nothing in the sample is supervised.
        """
        places = image_places(sample)
        if places != len(images):
            raise DataError(f"sample {sample.id} has {len(images)} images but its text has places for {places}")
        # count first, so that a sample that is too long is rejected before its images are cut into tiles
        counts = [self.tiler.count(*image.size) for image in images]
        tokens, labels = self._lay_out(sample, counts, inference=inference)
        if len(tokens) > self.max_seq_len:
            fewer = self.fewer_tokens.format(size=self.tiler.size)
            raise SampleTooLong(
                f"sample {sample.id} has {len(tokens)} tokens, {self.tokens_per_tile * sum(counts)} of them for its "
                f"images; the limit is {self.max_seq_len}: shorten it, {fewer}, raise max_seq_len, or skip such "
                "samples (on_error: skip)"
            )
        if not inference and all(label == IGNORE_INDEX for label in labels):
            raise DataError(f"sample {sample.id} has no assistant message, so there is nothing to learn from it")
        cut = [image.features if isinstance(image, EncodedPicture) else self.tiler(image) for image in images]
        asked = {} if inference else question_flags(sample, partial(self._lay_out, sample, counts, inference=False))
        pictures = [tiles.to(self.dtype) for tiles in cut]
        return {"id": sample.id, "tokens": tokens, "labels": labels, **asked, "images": pictures}

    def _lay_out(
        self,
        sample: Sample,
        tiles: Sequence[int],
        *,
        inference: bool,
        learned_roles: Container[str] = LEARNED_ROLES,
    ) -> tuple[list[int], list[int]]:
        images = [
            [*self.image_start, *[self.image_id] * (self.tokens_per_tile * count), *self.image_end] for count in tiles
        ]
        return lay_out(
            self.template,
            self.tokenizer,
            sample,
            images,
            inference=inference,
            learned_roles=learned_roles,
            supervise_header=self.supervise_header,
        )

    def collate(
        self, items: list[dict], pad_side: PadSide = "right", *, min_images: int = 1, min_tiles: int = 1
    ) -> dict:
        """Make a batch of transformed samples.

        Args:
            items: from ``__call__``.
            pad_side: where short rows are filled; ``left`` for generation.
            min_images: pad to at least this many images per sample.
            min_tiles: pad to at least this many tiles per image.

        Returns:
            ``tokens``, ``labels``, ``padding`` (True = real token) [b, s], ``vision`` for ``encode``, ``vision_mask``
            [b, s_e] (True at features that exist) and ``ids``. A sample without images has a zero image with no tiles.
            Encoded images give ``features`` [b, s_e, d] in place of ``vision``.
        """
        return collate_early(
            items,
            pad_id=self.pad_id,
            tile_size=self.tiler.size,
            tokens_per_tile=self.tokens_per_tile,
            pad_side=pad_side,
            images=min_images,
            tiles=min_tiles,
            dtype=self.dtype,
            feature_width=self.feature_width,
        )

    def encode(self, text: str) -> list[int]:
        """Ids of an answer that begins with ``text``."""
        return answer_ids(self.template, self.tokenizer, text)

    def decode(self, ids: list[int]) -> str:
        """Text of ids, special tokens left out."""
        return self.tokenizer.decode(ids)

    def token_count(self, sample: Sample, sizes: Sizes | None = None) -> int:
        """Number of tokens that the sample will have; no image is opened.

        Args:
            sample: its messages.
            sizes: (width, height) of its images; None assumes the maximum number of tiles for each.
        """
        return self.token_counts(sample, sizes)[0]

    def token_counts(self, sample: Sample, sizes: Sizes | None = None) -> tuple[int, int]:
        """Number of tokens as in :meth:`token_count`, and how many of them are predicted and supervised."""
        places = image_places(sample)
        counts = [self.tile_count(*size) for size in (sizes or ())][:places]
        counts += [self.tiler.max_tiles] * (places - len(counts))
        tokens, labels = self._lay_out(sample, counts, inference=False)
        return len(tokens), len(labels) - 1 - labels[1:].count(IGNORE_INDEX)

    def tile_count(self, width: int, height: int) -> int:
        """Number of tiles that an image of this size will have."""
        return self.tiler.count(width, height)
