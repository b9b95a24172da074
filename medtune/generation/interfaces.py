"""Interfaces that a generator needs of a model and its transform; all families of :mod:`medtune.models` have them."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from PIL import Image

from medtune.data.features import EncodedPicture
from medtune.data.sample import Sample
from medtune.models.common.interface import VLM


class AnswerModel(VLM, Protocol):
    """A VLM whose decoder can cache keys and values."""

    def setup_caches(
        self, batch_size: int, dtype: torch.dtype, *, encoder_max_seq_len: int, decoder_max_seq_len: int
    ) -> None:
        """Create the key-value caches, on the default device."""
        ...

    def caches_are_setup(self) -> bool:
        """Whether the caches exist."""
        ...


class PromptTransform(Protocol):
    """Turns samples into prompts and tokens into text."""

    image_id: int
    placeholder_id: int
    pad_id: int
    stop_ids: list[int]
    max_seq_len: int

    def __call__(
        self, sample: Sample, images: Sequence[Image.Image | EncodedPicture], *, inference: bool = False
    ) -> dict[str, Any]:
        """Tokens and tiles of one sample; the tiles of an already encoded image are used unchanged."""
        ...

    def collate(self, items: list[dict], pad_side: Any = "right") -> dict[str, Any]:
        """One batch of transformed samples."""
        ...

    def encode(self, text: str) -> list[int]:
        """Tokens of plain text."""
        ...

    def decode(self, ids: list[int]) -> str:
        """Text of tokens."""
        ...

    def token_count(self, sample: Sample) -> int:
        """Upper bound of a sample's number of tokens; the images are not opened."""
        ...
