"""Transform a sample into model inputs, and collate model inputs into a batch."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from medtune.data.features import EncodedPicture
from medtune.data.items import Sizes
from medtune.data.sample import Sample
from medtune.errors import DataError
from medtune.models.common.chat_template import IGNORE_INDEX, SampleTooLong, question_flags
from medtune.models.common.padding import PadSide
from medtune.models.common.tokenizer import ChatTokenizer, single_token
from medtune.models.llama3_2_vision._chat import lay_out
from medtune.models.llama3_2_vision._collate import BatchLayout, collate
from medtune.models.llama3_2_vision._images import ImageTiler, ResizeMode
from medtune.models.llama3_2_vision._tokenizer import llama3_chat_tokenizer

PLACEHOLDER = "\u2460"  # the digit one in a circle: a single token of Llama-3's vocabulary that no report uses


class DeepFusionTransform:
    """Tokens, labels and tiles of a sample for models of the Llama-3.2-Vision shape. Picklable; stateless.

    Args:
        tokenizer: a tokenizer with Llama-3's special tokens.
        image_size: side of a tile in pixels.
        patch_size: side of a patch in pixels.
        max_num_tiles: maximum number of tiles of one image.
        max_seq_len: maximum number of tokens of one sample.
        resize: see :class:`ImageTiler`.
        supervise_header: whether the header before an answer is supervised too.

    Attributes:
        dtype: dtype of the images, bf16 or fp32; set it to the model's.
        feature_width: None if images are pixels; if they are already encoded, the width d of their features.
        pad_id: fills short rows of a batch.
        image_id: the token that stands for an image.
        stop_ids: tokens that end an answer.
        placeholder_text: one character that is one token; learned vectors replace its embedding.
        placeholder_id: its id.
        tokens_per_tile: features that the encoder gives for one tile.

    Raises:
        ModelError: if the placeholder is not one token each time.
    """

    def __init__(
        self,
        tokenizer: ChatTokenizer,
        *,
        image_size: int,
        patch_size: int,
        max_num_tiles: int = 1,
        max_seq_len: int = 8192,
        resize: ResizeMode | None = None,
        supervise_header: bool = False,
    ) -> None:
        self.tokenizer = tokenizer
        self.tiler = ImageTiler(image_size, max_num_tiles, resize)
        self.max_num_tiles = max_num_tiles
        self.max_seq_len = max_seq_len
        self.supervise_header = supervise_header
        self.dtype = torch.float32
        self.feature_width: int | None = None
        self.pad_id = tokenizer.pad_id
        self.image_id = tokenizer.image_id
        self.stop_ids = [tokenizer.eos_id, tokenizer.eot_id, tokenizer.eom_id]
        self.tokens_per_tile = (image_size // patch_size) ** 2 + 1
        self.placeholder_text = PLACEHOLDER
        self.placeholder_id = single_token(tokenizer, PLACEHOLDER)
        self._layout = BatchLayout(self.pad_id, self.image_id, image_size, self.tokens_per_tile)

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
            tensor [tiles, 3, h, w] each, or [tiles, tokens per tile, d] for an encoded image), ``aspect_ratio`` (one
            tensor [2] each; none for encoded images), and for a sample with a virtual user ``asked`` (True at the
            supervised tokens of its questions).

        Raises:
            SampleTooLong: if the sample has more than ``max_seq_len`` tokens; nothing is cut.
            DataError: if images and image tokens differ in number, or nothing in the sample is supervised.
        """
        tokens, labels = self._lay_out(sample, inference=inference)
        if len(tokens) > self.max_seq_len:
            raise SampleTooLong(
                f"sample {sample.id} has {len(tokens)} tokens, the limit is {self.max_seq_len}: "
                "shorten it, raise max_seq_len, or skip such samples (on_error: skip)"
            )
        places = tokens.count(self.image_id)
        if places != len(images):
            raise DataError(f"sample {sample.id} has {len(images)} images but its text has places for {places}")
        if not inference and all(label == IGNORE_INDEX for label in labels):
            raise DataError(f"sample {sample.id} has no assistant message, so there is nothing to learn from it")
        encoded = [image.features for image in images if isinstance(image, EncodedPicture)]
        cut = [self.tiler(image) for image in images if not isinstance(image, EncodedPicture)]
        return {
            "id": sample.id,
            "tokens": tokens,
            "labels": labels,
            **({} if inference else question_flags(sample, partial(self._lay_out, sample))),
            "images": [tiles.to(self.dtype) for tiles in (*encoded, *(tiles for tiles, _ in cut))],
            "aspect_ratio": [grid for _, grid in cut],
        }

    def collate(
        self, items: list[dict], pad_side: PadSide = "right", *, min_images: int = 1, min_tiles: int = 1
    ) -> dict:
        """Make a batch of transformed samples.

        Args:
            items: from ``__call__``.
            pad_side: where short rows are filled; ``left`` for generation.
            min_images: pad to at least this many images per sample (caches need a fixed number of features).
            min_tiles: pad to at least this many tiles per image.

        Returns:
            ``tokens``, ``labels``, ``padding`` (True = real token) [b, s], ``vision`` for ``encode``, ``vision_mask``
            [b, s, s_e] and ``ids``. A sample without images has a zero image that no token sees. Encoded images give
            ``features`` [b, s_e, d] in place of ``vision``.
        """
        return collate(
            items,
            self._layout,
            pad_side=pad_side,
            images=min_images,
            tiles=min_tiles,
            dtype=self.dtype,
            feature_width=self.feature_width,
        )

    def encode(self, text: str) -> list[int]:
        """Ids of plain text, without begin or end tokens."""
        return self.tokenizer.encode(text)

    def decode(self, ids: list[int]) -> str:
        """Text of ids, special tokens left out."""
        return self.tokenizer.decode(ids)

    def token_count(self, sample: Sample, sizes: Sizes | None = None) -> int:
        """Number of tokens that the sample will have. The sizes of images do not matter; no image is opened."""
        return self.token_counts(sample, sizes)[0]

    def token_counts(self, sample: Sample, sizes: Sizes | None = None) -> tuple[int, int]:
        """Number of tokens as in :meth:`token_count`, and how many of them are predicted and supervised."""
        tokens, labels = self._lay_out(sample)
        return len(tokens), len(labels) - 1 - labels[1:].count(IGNORE_INDEX)

    def _lay_out(self, sample: Sample, **options: Any) -> tuple[list[int], list[int]]:
        return lay_out(self.tokenizer, sample, supervise_header=self.supervise_header, **options)

    def tile_count(self, width: int, height: int) -> int:
        """Number of tiles that an image of this size will have."""
        return self.tiler.count(width, height)


def llama3_2_vision_transform(
    path: str | Path,
    image_size: int = 560,
    max_num_tiles: int = 1,
    max_seq_len: int = 8192,
    resize: ResizeMode | None = None,
    supervise_header: bool = False,
) -> DeepFusionTransform:
    """The transform of Llama-3.2-Vision.

    Args:
        path: ``tokenizer.model``, ``tokenizer.json``, or the folder of the checkpoint.
        image_size: side of a tile: 560 for the Instruct weights, 448 for the base weights.
        max_num_tiles: 1 to 4; InstFree's official code uses 1.
        max_seq_len: maximum number of tokens of one sample.
        resize: ``squash`` (default for one tile) or ``pad`` (default for several).
        supervise_header: whether the header before an answer is supervised too, as in torchtune's own recipes.
    """
    return DeepFusionTransform(
        llama3_chat_tokenizer(path),
        image_size=image_size,
        patch_size=14,
        max_num_tiles=max_num_tiles,
        max_seq_len=max_seq_len,
        resize=resize,
        supervise_header=supervise_header,
    )
